# SPDX-License-Identifier: Apache-2.0
"""Rows of visual questions through a classifier, and what is kept of each prediction."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...data.vqa.targets import target_weights
from ...families.classifier.forward import classifier_inputs
from ..as_saved import as_saved
from ..batching import device_of, map_batches
from ..distance import row_mse
from ..model_checks import check_sound
from ..result import finite


COLUMNS = ("image", "question", "answers")


@dataclass(frozen=True)
class Prediction:
    """What a classifier makes of one row; values are `None` where its logits are not finite.

    Args:
        answer (`int`, *optional*):
            The class with the largest logit.
        accuracy (`float`, *optional*):
            Weight that the annotators give to that class.
        probability (`float`, *optional*):
            Sigmoids of the annotators' answers, their mean by weight; `None` if no class is among them.
        entropy (`float`, *optional*):
            Of the softmax, over the logarithm of the number of classes: 1 is uniform.
        p_max (`float`, *optional*):
            Largest softmax probability.
        divergence (`float`, *optional*):
            Jensen-Shannon divergence from the retrained model's softmax, in bits: 0 to 1.
        agrees (`float`, *optional*):
            Whether the retrained model's answer is the same.
        logit_mse (`float`, *optional*):
            Mean squared difference from the retrained model's logits.
        representation_mse (`float`, *optional*):
            The same of what the classifiers read; `None` where the models differ in width.
        states (`np.ndarray` of shape `[2, d]`, *optional*):
            What both classifiers read, in float32.
    """

    answer: int | None
    accuracy: float | None
    probability: float | None
    entropy: float | None
    p_max: float | None
    divergence: float | None = None
    agrees: float | None = None
    logit_mse: float | None = None
    representation_mse: float | None = None
    states: np.ndarray | None = field(default=None, repr=False, compare=False)


def predict_rows(
    model: torch.nn.Module,
    processor: Any,
    rows: Any,
    *,
    retrained: torch.nn.Module | None = None,
    pictures: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    desc: str = "Answering",
) -> list[Prediction]:
    """Runs rows through a model; with `retrained`, through both, batch by batch, so that no logits are kept but only
    what the classifiers read.

    Args:
        model (`ViltForQuestionAnswering`):
            The classifier, with `config.label2id`.
        processor (`ViltProcessor`):
            Its processor.
        rows (`datasets.Dataset` or `Sequence[dict]`):
            With `image`, `question` and `answers`.
        retrained (`ViltForQuestionAnswering`, *optional*):
            Has the same classes.
        pictures (`Sequence[int]`, *optional*):
            Row whose picture each row gets; its own by default.
        batch_size (`int`), progress (`bool`), desc (`str`):
            Rows a forward pass; the bar and its name.

    Returns:
        `list[Prediction]`: in the order of the rows.
    """
    classes = model.config.label2id
    models = [model] if retrained is None else [model, retrained]

    def compute(batch: list[int]) -> list[Prediction]:
        texts = [rows[i] for i in batch]
        shown = None if pictures is None else [rows[pictures[i]] for i in batch]
        inputs = model_inputs(processor, texts, shown)
        logits, states = [], []
        for m in models:
            with ExitStack() as stack:
                # Alone, a model is compared with none
                seen = stack.enter_context(classifier_inputs(m)) if retrained is not None else []
                logits.append(m(**inputs.to(device_of(m))).logits.double().cpu())
            states += [state.float().cpu().numpy() for state in seen]
        weights = torch.zeros_like(logits[0])
        for place, row in enumerate(texts):
            for answer, weight in target_weights(row["answers"]).items():
                if answer in classes:
                    weights[place, classes[answer]] = weight
        return _predictions(logits[0], weights, *logits[1:], states=states)

    # ViLT draws the order of its patches, which moves logits in the last digits
    with as_saved(model), as_saved(models[-1]), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        found = map_batches(compute, [1] * len(rows), batch_size, progress=progress, desc=desc)
    sound = [prediction.answer is not None for prediction in found]
    if retrained is None:
        check_sound(model, sound)
    return found


def model_inputs(processor: Any, rows: Sequence[Mapping], shown: Sequence[Mapping] | None = None) -> Any:
    """What a model reads of `rows`, with the pictures of `shown` (their own by default)."""
    return processor(
        # Photographs without colour have one channel
        images=[row["image"].convert("RGB") for row in shown or rows],
        text=[row["question"] for row in rows],
        padding=True,
        truncation=True,
        return_tensors="pt",
    )


def check_rows(name: str, rows: Any) -> None:
    """Raises `ValueError` if rows are not what [`predict_rows`] reads; pictures are not opened."""
    if not hasattr(rows, "__len__") or isinstance(rows, (str, Mapping)):
        raise ValueError(f"The set {name!r} is a {type(rows).__name__}. Pass a `datasets.Dataset` or a list of dicts.")
    if len(rows) == 0:
        raise ValueError(f"The set {name!r} is empty. Give at least one row.")
    columns = getattr(rows, "column_names", None) or list(rows[0])
    if lacking := [column for column in COLUMNS if column not in columns]:
        raise ValueError(
            f"The set {name!r} has the columns {sorted(columns)} and lacks {', '.join(lacking)}. An audit of visual "
            "questions reads `image`, `question` and `answers` (of all annotators)."
        )


def _predictions(
    logits: torch.Tensor, weights: torch.Tensor, gold: torch.Tensor | None = None, states: Sequence[np.ndarray] = ()
) -> list[Prediction]:
    """One [`Prediction`] a row of `logits` `[n, K]`, with `weights` `[n, K]` of the answers; with the retrained
    model's logits also both models' `states`, `[n, d]` each."""
    logp = logits.log_softmax(-1)
    best = logits.argmax(-1)
    columns = {
        "accuracy": weights.gather(1, best[:, None])[:, 0],
        # 0/0 where no class is among the answers: not a number, and so `None`
        "probability": (weights * logits.sigmoid()).sum(-1) / weights.sum(-1),
        "entropy": -(logp.exp() * logp).sum(-1) / math.log(logits.shape[-1]),
        "p_max": logp.max(-1).values.exp(),
    }
    sound = logits.isfinite().all(-1)
    both = [None] * len(logits)
    if gold is not None:
        columns |= _beside(logits, gold)
        sound &= gold.isfinite().all(-1)
        if states[0].shape == states[1].shape:
            columns["representation_mse"] = torch.from_numpy(row_mse(*states))
            both = np.stack(states, axis=1)
    names, values = list(columns), torch.stack(list(columns.values()), dim=-1).tolist()
    return [
        Prediction(answer=answer, states=pair, **dict(zip(names, map(finite, row), strict=True)))
        if fine
        else Prediction(*[None] * 5)
        for answer, row, fine, pair in zip(best.tolist(), values, sound.tolist(), both, strict=True)
    ]


def _beside(logits: torch.Tensor, gold: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a prediction is beside the retrained model's; both `[n, K]`."""
    logp, gold_logp = logits.log_softmax(-1), gold.log_softmax(-1)
    middle = torch.logaddexp(logp, gold_logp) - math.log(2)
    kl = [(side.exp() * (side - middle)).sum(-1) for side in (logp, gold_logp)]
    return {
        "divergence": ((kl[0] + kl[1]) / 2 / math.log(2)).clamp(0, 1),
        "agrees": (logits.argmax(-1) == gold.argmax(-1)).double(),
        "logit_mse": torch.from_numpy(row_mse(logits.numpy(), gold.numpy())),
    }
