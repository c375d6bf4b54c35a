# SPDX-License-Identifier: Apache-2.0
"""The logit lens: what a layer's states say of the answer, read with a final norm and head."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...data.formats import IGNORE_INDEX
from ..result import finite
from ..robustness.measured import RowScores
from ..scoring import score_rows
from .states import Rows, answer_states, decoded


# Nats by which the last layer, read so, may differ from what the model says.
TOLERANCE = 0.1
# An attacker who may try so many tokens (candidates of Patil et al., 2309.17410).
TOP = 10


def lens(
    reader: nn.Module, rows: Rows, states: Sequence[Tensor], layer: int, places: Sequence[Sequence[int]]
) -> RowScores:
    """What `reader`'s norm and head read of the answers from a layer.

    Args:
        reader (`nn.Module`): the model itself, or the original: a decoder that unlearning did not touch.
        states (`list[Tensor]`): of each row `[layers, tokens, d]`.
        places (`list[list[int]]`): which tokens of each answer.

    Returns:
        [`RowScores`]: `readable`, the probability a token (as `probability` is), and `top10`, the share of the tokens
        that are among the ten most likely ones. `None` for a row without any.
    """
    wanted = [answer(row)[at] for row, at in zip(rows.rows, places, strict=True)]
    chosen = [row[layer, at] for row, at in zip(states, places, strict=True)]
    ends = np.cumsum([len(at) for at in places])[:-1]
    logps, ranks = (np.split(part, ends) for part in decoded(reader, torch.cat(chosen), torch.cat(wanted)))
    scores = {
        "readable": [finite(np.exp(row.mean(dtype=np.float64))) if len(row) else None for row in logps],
        f"top{TOP}": [float((row < TOP).mean()) if len(row) else None for row in ranks],
    }
    return RowScores(list(range(len(rows))), scores=scores)


def answer(row) -> Tensor:
    """The labelled tokens of a row `[n]`."""
    labels = torch.as_tensor(row["labels"])[1:]
    return labels[labels != IGNORE_INDEX]


def check_decodes(model: nn.Module, rows: Rows) -> None:
    """Refuses a model that does more with its last layer's states than is done here: its layers would be misread.

    Raises:
        `ValueError`
    """
    row = max(rows.rows, key=lambda row: len(answer(row)))
    said = score_rows(model, [row], pad_token_id=rows.pad_token_id, progress=False)[0].logps
    # Of the same forward: in half precision many layers round a batch and a row alone differently.
    (states,) = answer_states(model, Rows([row], rows.pad_token_id))
    read, _ = decoded(model, states[-1], answer(row))
    if not np.allclose(said, read, atol=TOLERANCE, rtol=TOLERANCE / 5):
        raise ValueError(
            f"{type(getattr(model, 'get_base_model', lambda: model)()).__name__}: what its head makes of its last "
            f"layer's states differs from what it predicts, by up to {np.abs(said - read).max():.2g} nats, so its "
            "layers cannot be read. Leave `lens` out of `parts`."
        )
