# SPDX-License-Identifier: Apache-2.0
"""Likeness of what a ViLT makes of pictures, of questions and of both: linear CKA, which also finds a dead branch."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..as_saved import as_saved
from ..batching import device_of, map_batches
from ..cka import linear_cka
from .predictions import check_rows, model_inputs


logger = logging.getLogger(__name__)

PARTS = ("image", "text", "fused")


def representations(
    model: torch.nn.Module, processor: Any, rows: Any, *, batch_size: int = 32, progress: bool = True
) -> dict[str, np.ndarray]:
    """What the last layer makes of each row.

    Args:
        model (`ViltForQuestionAnswering`):
            Any checkpoint; its mode is left as found.
        processor (`ViltProcessor`):
            Its processor.
        rows (`datasets.Dataset` or `Sequence[dict]`):
            With `image`, `question` and `answers`.
        batch_size (`int`), progress (`bool`):
            Rows a forward pass; the bar.

    Returns:
        `dict[str, np.ndarray]`: `image` and `text`, the means over their own positions, and `fused`, which the
        classifier reads; each `[n, d]` in float64.
    """
    check_rows("rows", rows)

    def compute(batch: list[int]) -> list[tuple[np.ndarray, ...]]:
        inputs = model_inputs(processor, [rows[i] for i in batch]).to(device_of(model))
        masks = []
        hook = model.vilt.embeddings.register_forward_hook(lambda module, args, output: masks.append(output[1]))
        try:
            output = model.vilt(**inputs)
        finally:
            hook.remove()
        hidden, mask = output.last_hidden_state.double(), masks[0][:, :, None].double()
        length = inputs["input_ids"].shape[1]
        parts = [(hidden[:, length:], mask[:, length:]), (hidden[:, :length], mask[:, :length])]
        means = [(states * seen).sum(1) / seen.sum(1) for states, seen in parts]
        return list(zip(*(part.cpu().numpy() for part in (*means, output.pooler_output.double())), strict=True))

    with as_saved(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        kept = map_batches(compute, [1] * len(rows), batch_size, progress=progress, desc="Representations")
    return {name: np.stack(column) for name, column in zip(PARTS, zip(*kept, strict=True), strict=True)}


def cka_map(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """
    CKA of every part with every part, of one model with itself or of two models on the same rows.

    Warns of a part that does not depend on the row: its CKA with itself is not 1 but undefined, and whatever was
    measured on it says nothing. The last layers of ViLT mix both parts, so one that varies need not have looked: that
    is what [`~hf_unlearn.audit.vqa.shuffled_accuracy`] tests.

    Args:
        one (`Mapping`), other (`Mapping`):
            What [`representations`] returned.

    Returns:
        `dict`: by part of `one`, then of `other`.
    """
    for which, parts in (("first", one), ("second", other)):
        for name, part in parts.items():
            if linear_cka(part, part) is None:
                logger.warning(
                    "The %s representation of the %s model is the same for all rows: this branch is dead.", name, which
                )
    return {a: {b: linear_cka(one[a], other[b]) for b in other} for a in one}
