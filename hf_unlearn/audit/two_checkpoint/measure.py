# SPDX-License-Identifier: Apache-2.0
"""What do the models from before and after unlearning tell together?"""

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from ..generation import pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores
from ..robustness.rows import RobustnessPrepared
from ..scoring import map_labelled, score_rows
from .arguments import TwoCheckpointArguments


class TwoCheckpointAudit(RobustnessKind):
    """Answers under both models' predictions together, beside those of the original alone. It informs and judges
    nothing: the difference between two models shows a retrained one's gaps as well."""

    name, arguments = "two_checkpoint", TwoCheckpointArguments
    original_is_measured: ClassVar[bool] = False
    retrained_is_measured: ClassVar[bool] = False
    reads_others: ClassVar[bool] = True

    def check(self, args: TwoCheckpointArguments, prepared: RobustnessPrepared) -> None:
        if args.original_model_name_or_path is None:
            raise ValueError(
                "two_checkpoint requires `--original_model_name_or_path`: the model before unlearning is one of the "
                "two."
            )

    def attack(self, model, args: TwoCheckpointArguments, prepared, context) -> Iterator[Measured]:
        weights = [1.0, *args.guidance]
        rows = prepared.rows["forget"]
        # The original alone takes all tokens.
        filters = [0.0, *([args.token_filter] * len(args.guidance))]

        def scores_of(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[np.ndarray, ...]]:
            def compute(both: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
                after, before = both.float().chunk(2, -1)
                found = (guided(after, before, g, share) for g, share in zip(weights, filters, strict=True))
                return tuple(
                    part
                    for logps in found
                    for part in (logps.gather(-1, wanted[:, None]).squeeze(-1), logps.argmax(-1) == wanted)
                )

            return map_labelled(compute, logits, labels)

        found = score_rows(
            _Both(model, context.original()), rows, pad_token_id=pad_token_id(prepared.tokenizer),
            batch_size=args.audit_batch_size, progress=context.progress, desc="Scoring with both", scores_of=scores_of,
        )  # fmt: skip
        for i, g in enumerate(weights):
            scores = _scores([(row[2 * i], row[2 * i + 1]) for row in found])
            tested = RowScores([*range(len(rows))], scores=scores)
            yield Measured(f"guidance {g:g}" if i else "the original alone", tested, "guided" if i else "original")

    def notes(self, args: TwoCheckpointArguments) -> list[str]:
        return list(NOTES)


NOTES = (
    (
        "For information: no verdict and no gate. Of a retrained model, too, the original shows what was left out of "
        "it, so that a retrained model does not pass. What helps is that the original is not given away."
    ),
    (
        "`original`: the model before unlearning alone. `guided`: (1 - g) log p_after + g log p_before, at the "
        "strongest g. `exact_match`: each token of the answer is the likeliest one, so greedy decoding gives it."
    ),
)


def guided(after: torch.Tensor, before: torch.Tensor, guidance: float, token_filter: float) -> torch.Tensor:
    """Log-probabilities in proportion to `p_after^(1-g) p_before^g` (https://huggingface.co/papers/2505.24379): what
    unlearning made less likely becomes more likely than it ever was.

    Args:
        after, before (`torch.Tensor` `[m, V]`): logits.
        guidance (`float`): g; 1 is the model before alone.
        token_filter (`float`): tokens with `p_before` below this share of its largest get probability 0.

    Returns:
        `torch.Tensor` `[m, V]`
    """
    after, before = after.log_softmax(-1), before.log_softmax(-1)
    both = (1 - guidance) * after + guidance * before
    if token_filter > 0:
        least = before.amax(-1, keepdim=True) + math.log(token_filter)
        both = both.masked_fill(before < least, -torch.inf)
    return both.log_softmax(-1)


class _Both(torch.nn.Module):
    """Two models as one, their logits beside each other `[B, T, 2V]`: of the tokens that both know. One of them may
    have more embeddings than there are tokens."""

    def __init__(self, after: torch.nn.Module, before: torch.nn.Module):
        super().__init__()
        self.after, self.before = after, before

    def forward(self, **inputs: Any) -> SimpleNamespace:
        logits = self.after(**inputs).logits, self.before(**inputs).logits
        size = min(one.shape[-1] for one in logits)
        return SimpleNamespace(logits=torch.cat([one[..., :size] for one in logits], -1))


def _scores(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float | None]]:
    """Of each row, from its tokens' log-probabilities and whether they are the likeliest."""
    known = [len(logps) > 0 and not np.isnan(logps).any() for logps, _ in found]
    pairs = [*zip(known, found, strict=True)]
    return {
        "probability": [math.exp(logps.mean()) if ok else None for ok, (logps, _) in pairs],
        "exact_match": [float(right.all()) if ok else None for ok, (_, right) in pairs],
    }
