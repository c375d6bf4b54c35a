# SPDX-License-Identifier: Apache-2.0
"""How well a score tells models that know from models that do not, and whether it may decide."""

from collections.abc import Sequence
from typing import Any

import numpy as np


# A gate must tell models apart at least so well.
LEAST_AUC = 0.9
YES, NO, OPEN = "yes", "no", "open"


def separation(knowing: Sequence[float], ignorant: Sequence[float]) -> dict[str, Any] | None:
    """How well a score tells two pools apart.

    Args:
        knowing (`Sequence[float]` `[m]`), ignorant (`Sequence[float]` `[n]`): the score of each model.

    Returns:
        `dict`: `auc`, the probability that a model that knows scores higher (ties count half); its 95 % `interval`;
        and `p` of the two-sided Mann-Whitney test by permutation. `None` without a model in one of them.
    """
    from scipy.stats import PermutationMethod, mannwhitneyu
    from sklearn.metrics import roc_auc_score

    if not knowing or not ignorant:
        return None
    labels = [1] * len(knowing) + [0] * len(ignorant)
    auc = float(roc_auc_score(labels, [*knowing, *ignorant]))
    method = PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    p = float(mannwhitneyu(knowing, ignorant, method=method).pvalue)
    return {"auc": auc, "interval": auc_interval(auc, len(knowing), len(ignorant)), "p": p}


def auc_interval(auc: float, m: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of an AUC of `m` and `n` values: method 5 of Newcombe (Statistics in Medicine 25, 2006).

    All `θ` with `(auc - θ)² <= z² V(θ)`, `V(θ) = θ (1 - θ) (1 + (N - 1) ((1 - θ) / (2 - θ) + θ / (1 + θ))) / (m n)`,
    `N = (m + n) / 2`. DeLong's interval has no width where two pools are apart, however few models are in them; this
    one has.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, half = norm.ppf(0.975), (m + n) / 2

    def outside(theta: float) -> float:
        spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
        return (auc - theta) ** 2 - z**2 * theta * (1 - theta) * (1 + (half - 1) * spread) / (m * n)

    hair = 1e-9
    low = brentq(outside, 0.0, auc - hair) if auc > hair else 0.0
    high = brentq(outside, auc + hair, 1.0) if auc < 1 - hair else 1.0
    return float(low), float(high)


def rank_correlation(shares: Sequence[float], scores: Sequence[float]) -> float | None:
    """Spearman's correlation of a score with the share of the facts that models were taught; `None` where one of them
    is constant or there are fewer than three models."""
    from scipy.stats import spearmanr

    if len(scores) < 3 or len({*shares}) == 1 or len({*scores}) == 1:
        return None
    return float(spearmanr(shares, scores).statistic)


def may_gate(found: dict[str, Any] | None, alarms: int, undefined: int) -> tuple[str, str]:
    """Whether a score may decide: [`YES`], [`NO`] or [`OPEN`], and why.

    It may where the interval of its AUC lies above `LEAST_AUC`, and it gave no false alarm. Too few models leave that
    open.

    Args:
        found (`dict`): of [`separation`].
        alarms (`int`): models without the knowledge of which it says that they have it.
        undefined (`int`): models of which it says nothing.
    """
    if alarms:
        return NO, f"{alarms} false alarm{'s' * (alarms > 1)}"
    if found is None:
        return OPEN, "undefined in a pool"
    low, high = found["interval"]
    if high < LEAST_AUC:
        return NO, f"AUC at most {high:.2f}"
    if undefined:
        return OPEN, f"says nothing of {undefined} model{'s' * (undefined > 1)}"
    if low > LEAST_AUC:
        return YES, f"AUC above {low:.2f}"
    return OPEN, f"the AUC's interval begins at {low:.2f}: too few models, or too little told apart"
