# SPDX-License-Identifier: Apache-2.0
"""One teacher-forced pass: what a model thinks of every labelled token. All metrics read from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import IGNORE_INDEX

from .as_saved import as_saved
from .batching import device_of, map_batches
from .model_checks import check_language_model, check_sound
from .result import finite


# Logits that are held in float32 at a time: 128 MiB.
CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class TokenScores:
    """A row's labelled tokens, seen by a model that was given the tokens before them.

    Args:
        logps (`np.ndarray` `[n]`):
            Natural log-probability of each labelled token, float32 (float64 for float64 models).
        correct (`np.ndarray` `[n]`, bool):
            Whether the most likely token is the labelled one.
    """

    logps: np.ndarray
    correct: np.ndarray

    @property
    def n(self) -> int:
        """Labelled tokens. A label on the first token is none: nothing predicts it."""
        return len(self.logps)

    @property
    def mean_logp(self) -> float | None:
        """Mean log-probability a token; `None` without labelled tokens or where it is not finite."""
        return finite(self.logps.mean(dtype=np.float64)) if self.n else None


def score_rows(
    model: torch.nn.Module,
    rows: Sequence[dict[str, Sequence[int]]],
    *,
    pad_token_id: int = 0,
    batch_size: int = 16,
    accelerator: Any = None,
    progress: bool = True,
    desc: str = "Scoring",
    scores_of: Callable[[torch.Tensor, torch.Tensor], list[Any]] | None = None,
) -> list[Any]:
    """Log-probabilities of the labelled tokens of every row, in one forward pass a batch.

    Args:
        model (`torch.nn.Module`):
            Causal language model (also a PEFT model, or one that accelerate wrapped); its mode is left as found.
        rows (`Sequence[dict]`):
            `input_ids` and `labels` of one length each, -100 where a token is not scored.
        pad_token_id (`int`):
            Fills the batch; masked, so its value has no effect.
        batch_size (`int`):
            Rows a forward pass (and a process).
        accelerator (`accelerate.Accelerator`, *optional*):
            Shares the rows among its processes; each gets all results.
        progress (`bool`), desc (`str`):
            Progress bar.
        scores_of (`Callable`, *optional*):
            What is made of a batch's logits `[B, T, V]` and labels `[B, T]`, one result a row; by default
            [`token_scores`].

    Returns:
        `list[TokenScores]`: one a row, in their order (or whatever `scores_of` makes).

    Raises:
        `ValueError`: for a model that is no causal language model, or gives no finite log-probability at all.
    """
    check_language_model(model)
    collate = RoleCollator(pad_token_id=pad_token_id)
    device = device_of(model)

    def compute(batch: list[int]) -> list[TokenScores]:
        inputs = collate([rows[i] for i in batch])
        labels = inputs.pop("labels")
        logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        return (scores_of or token_scores)(logits, labels.to(logits.device))

    with as_saved(model), torch.no_grad():
        found = map_batches(compute, [len(row["input_ids"]) for row in rows], batch_size, accelerator, progress, desc)
    if scores_of is None:
        check_sound(model, [score.mean_logp is not None for score in found if score.n])
    return found


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> list[TokenScores]:
    """Scores of the labelled tokens of a batch.

    Only labelled positions are taken out of `logits`, and only some of them at a time are held in float32.

    Args:
        logits (`torch.Tensor` `[B, T, V]`):
            In any float type; position `t` predicts token `t + 1`.
        labels (`torch.Tensor` `[B, T]`):
            Token ids, unshifted; -100 where a token is not scored.

    Returns:
        `list[TokenScores]`: `B` of them.
    """

    def compute(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = scores if scores.dtype == torch.float64 else scores.float()
        logps = scores.gather(-1, wanted[:, None]).squeeze(-1) - scores.logsumexp(-1)
        return logps, scores.argmax(-1) == wanted

    return [TokenScores(*row) for row in map_labelled(compute, logits, labels)]


def answer_loss(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean negative log-likelihood of the labelled tokens of a batch, with its gradient, for attacks that train.

    Args:
        model (`torch.nn.Module`): causal language model.
        inputs (`dict`): of the collator, on the model's device, `labels` among them, unshifted.

    Returns:
        `torch.Tensor`: nats a token, float32: in half precision small steps are lost.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")[:, 1:]
    asked = labels != IGNORE_INDEX
    return torch.nn.functional.cross_entropy(model(**inputs).logits[:, :-1][asked].float(), labels[asked])


def map_labelled(
    compute: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    logits: torch.Tensor,
    labels: torch.Tensor,
    elements: int = CHUNK_ELEMENTS,
) -> list[tuple[np.ndarray, ...]]:
    """Calls `compute` on the logits `[m, V]` and the ids `[m]` of labelled tokens, some at a time.

    Args:
        compute (`Callable`):
            Returns tensors `[m]`; called at least once, if need be without tokens.
        logits (`torch.Tensor` `[B, T, V]`), labels (`torch.Tensor` `[B, T]`):
            As in [`token_scores`].
        elements (`int`):
            Logits a call.

    Returns:
        `list[tuple[np.ndarray]]`: the results of each of the `B` rows.
    """
    targets = labels[:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    wanted = targets[rows, columns]
    step = max(1, elements // logits.shape[-1])
    parts = []
    for start in range(0, max(1, len(rows)), step):
        part = slice(start, start + step)
        parts.append(compute(logits[rows[part], columns[part]], wanted[part]))
    ends = np.cumsum((targets != IGNORE_INDEX).sum(1).cpu().numpy())[:-1]
    results = [np.split(torch.cat(column).cpu().numpy(), ends) for column in zip(*parts, strict=True)]
    return list(zip(*results, strict=True))
