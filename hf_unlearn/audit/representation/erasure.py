# SPDX-License-Identifier: Apache-2.0
"""Erasure: how much of what the original model reads in its own states is not there in another model's.

Answer tokens are predicted by the original model with the states of another model in their place, one layer at a
time. The states of a retrained model cost it some log-probability, and those of the unlearned model a share of that
(Unlearning Depth Score, 2605.24614, of tokens that the original knows and the retrained model does not).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


# A layer at which the retrained model's states cost less than so many nats says nothing of a row.
LEAST = 0.05


@dataclass
class Erasure:
    """Of the states of one model.

    Args:
        intact (`list[float | None]` `[n]`):
            Of each row 1 less its erasure: 1 where the states do as well as the original's own, 0 where no better than
            those of the retrained model; `None` for a row without key tokens, or in which these cost nothing.
        by_layer (`list[float | None]` `[layers]`): the same of each layer, over all rows.
        overshoot (`float`, *optional*):
            What the states cost, over what the retrained model's cost, not clipped: above 1 they do worse than those
            of a model that never knew, which is a trace of its own.
    """

    intact: list[float | None]
    by_layer: list[float | None]
    overshoot: float | None


def erasure(costs: Sequence[np.ndarray], gold: Sequence[np.ndarray], least: float = LEAST) -> Erasure:
    """Sums over the layers where the retrained model's states cost more than `least`:
    `1 - sum gold clip(costs / gold, 0, 1) / sum gold`.

    Args:
        costs (`list[np.ndarray]` `[layers]` a row):
            Nats a key token that the original model loses with the audited model's states.
        gold (`list[np.ndarray]` `[layers]` a row): with the retrained model's.
    """
    if not len(gold):
        return Erasure([], [], None)
    costs, gold = np.stack(costs), np.stack(gold)
    used = np.isfinite(gold) & np.isfinite(costs) & (gold > least)
    weight = np.where(used, gold, 0.0)
    lost = np.where(used, np.clip(costs, 0.0, gold), 0.0)
    raw = np.where(used, costs, 0.0).sum()
    return Erasure(
        _shares(lost.sum(1), weight.sum(1)),
        _shares(lost.sum(0), weight.sum(0)),
        float(raw / weight.sum()) if weight.any() else None,
    )


def _shares(lost: np.ndarray, weight: np.ndarray) -> list[float | None]:
    return [float(1 - a / b) if b > 0 else None for a, b in zip(lost, weight, strict=True)]
