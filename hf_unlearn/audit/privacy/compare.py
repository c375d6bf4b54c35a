# SPDX-License-Identifier: Apache-2.0
"""The same attack on two models, row by row: how far is a model from the one that never saw the forget rows?"""

import math
from collections.abc import Sequence

import numpy as np

from ..result import MetricResult
from .rates import ALPHA


def auc_difference(
    members: np.ndarray,
    nonmembers: np.ndarray,
    gold_members: np.ndarray,
    gold_nonmembers: np.ndarray,
    effect: float = 1.0,
) -> MetricResult:
    """AUC of a model less that of the retrained one, with DeLong's interval for the same rows (DeLong et al. 1988).

    Args:
        members (`np.ndarray` `[n1]`), nonmembers (`np.ndarray` `[n0]`):
            Scores under the model.
        gold_members (`np.ndarray` `[n1]`), gold_nonmembers (`np.ndarray` `[n0]`):
            Scores of the same rows under the retrained model.
        effect (`float`):
            How many rows say as much as one that is independent of the others; see [`BaseAttack`].
    """
    from scipy.stats import norm

    if min(len(members), len(nonmembers)) < 2:
        return _undefined("auc_vs_retrained", len(members))
    mine, gold = _placements(members, nonmembers), _placements(gold_members, gold_nonmembers)
    value = float(mine[0].mean() - gold[0].mean())
    spread = math.sqrt(effect * sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(mine, gold, strict=True)))
    z = float(norm.ppf(1 - ALPHA / 2))
    return MetricResult(
        "auc_vs_retrained",
        value,
        len(members),
        "closer_to_retrained",
        # Where no row's place differs, the sample says nothing of how much it might have.
        interval=(value - z * spread, value + z * spread) if spread > 0 else None,
        interval_method="delong, paired" if spread > 0 else None,
        details={"retrained": float(gold[0].mean())},
    )


def rate_difference(
    name: str, found: Sequence[float | None], gold: Sequence[float | None], effect: float = 1.0
) -> MetricResult:
    """TPR of a model less that of the retrained one, each at its own threshold, on the same members.

    The interval is Bonett and Price's (2012), the p-value of the exact McNemar test.

    Args:
        found, gold (`Sequence[float]` `[n1]`):
            Whether each member was found, 0 or 1; `None` where undefined.
        effect (`float`):
            As in [`auc_difference`]; it widens the interval, the test takes rows as they are.
    """
    from scipy.stats import binomtest, norm

    pairs = [(a, b) for a, b in zip(found, gold, strict=True) if a is not None and b is not None]
    n = len(pairs)
    if n == 0:
        return _undefined(f"{name}_vs_retrained", 0, len(found))
    only_mine, only_gold = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    p, q = (only_mine + 1) / (n + 2), (only_gold + 1) / (n + 2)
    half = float(norm.ppf(1 - ALPHA / 2)) * math.sqrt(effect * (p + q - (p - q) ** 2) / (n + 2))
    discordant = only_mine + only_gold
    return MetricResult(
        f"{name}_vs_retrained",
        (only_mine - only_gold) / n,
        n,
        "closer_to_retrained",
        undefined=len(found) - n,
        interval=(max(-1.0, p - q - half), min(1.0, p - q + half)),
        interval_method="bonett-price, paired",
        details={
            "retrained": sum(b for _, b in pairs) / n,
            "p_mcnemar": float(binomtest(only_mine, discordant).pvalue) if discordant else 1.0,
        },
    )


def _undefined(name: str, n: int, undefined: int = 0) -> MetricResult:
    """Where next to no row has a score under both models."""
    details = {"status": "undefined"}
    return MetricResult(name, None, n, "closer_to_retrained", undefined=undefined, details=details)


def _placements(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the share of the other set that it beats, ties counted half."""

    def beaten(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        below, up_to = (np.searchsorted(others, scores, side=side) for side in ("left", "right"))
        return (below + up_to) / (2 * len(others))

    return beaten(members, nonmembers), 1 - beaten(nonmembers, members)
