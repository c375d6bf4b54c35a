# SPDX-License-Identifier: Apache-2.0
"""The best of several attacks, with what the best of as many meaningless ones would reach."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..result import MetricResult
from .rates import ALPHA, fpr_name, rank_at


DRAWS = 500


def chance_of_maximum(
    scores: np.ndarray,
    n_members: int,
    ks: Sequence[int],
    effects: Sequence[float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """TPR of the best of several attacks if membership had nothing to do with scores, by permutation.

    Who is a member and who sets the threshold is drawn anew; the scores stay with their rows, so that attacks which
    say the same count as one.

    Args:
        scores (`np.ndarray` `[A, n1 + n]`):
            Of members and calibration non-members under each attack; larger is more suspicious, `-inf` if undefined.
        n_members (`int`):
            `n1`.
        ks (`Sequence[int]`):
            Ranks of the thresholds among the `n` calibration non-members.
        effects (`Sequence[float]`, *optional*):
            Design effect of each row of `scores`, as in [`~hf_unlearn.audit.privacy.rates.tpr_at_fpr`]: permuting
            scores does not permute what was learned from the labels, so what is found is spread out by its root.
        draws (`int`), seed (`int`):
            Permutations.

    Returns:
        `np.ndarray` `[len(ks), draws]`.
    """
    rng = np.random.default_rng(seed)
    size = scores.shape[1]
    places = np.asarray(ks) - 1
    means = np.asarray(ks) / (size - n_members + 1)
    spreads = np.sqrt(np.ones(len(scores)) if effects is None else np.asarray(effects))
    orders = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, orders, axis=1)
    # The first place of those who share a score: nobody among them is above the others.
    firsts = [np.searchsorted(-row, -row, side="left") for row in ranked]
    deepest = places.max() + 1
    # Thresholds lie among the highest scores; six standard deviations further down is far enough.
    depth = math.ceil((deepest + 6 * math.sqrt(deepest) + 10) * size / (size - n_members))
    found = np.zeros((len(places), draws))
    for draw in range(draws):
        sets_threshold = np.zeros(size, dtype=bool)
        sets_threshold[rng.choice(size, size - n_members, replace=False)] = True
        for order, first, spread in zip(orders, firsts, spreads, strict=True):
            calibration = np.flatnonzero(sets_threshold[order[:depth]])
            if len(calibration) < deepest:
                calibration = np.flatnonzero(sets_threshold[order])
            above = first[calibration[places]]
            hits = above - np.searchsorted(calibration, above)
            rates = means + spread * (hits / n_members - means)
            found[:, draw] = np.maximum(found[:, draw], rates.clip(max=1))
    return found


def worst_case(
    results: dict[str, MetricResult],
    scores: np.ndarray,
    n_members: int,
    fprs: Sequence[float],
    effects: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, MetricResult]:
    """The largest TPR over attacks and tails at each rate.

    Args:
        results (`dict[str, MetricResult]`):
            `"<attack>/tpr@<fpr>[/<tail>]"`, all at all rates.
        scores (`np.ndarray` `[A, n1 + n]`):
            As in [`chance_of_maximum`].
        n_members (`int`):
            `n1`.
        effects (`Sequence[float]`, *optional*):
            Likewise.
        fprs (`Sequence[float]`), seed (`int`):
            As in the evaluation.

    Returns:
        `dict[str, MetricResult]`: `"worst/tpr@<fpr>"`; its interval is the winning attack's and does not know that it
        won, `details["chance"]` and `details["p_chance"]` do.
    """
    n = scores.shape[1] - n_members
    resolved = [fpr for fpr in fprs if rank_at(n, fpr) >= 1]
    ks = [rank_at(n, fpr) for fpr in resolved]
    drawn = chance_of_maximum(scores, n_members, ks, effects, seed=seed) if resolved else []
    found = {}
    for fpr in fprs:
        name = f"tpr@{fpr_name(fpr)}"
        mine = {key: result for key, result in results.items() if key.split("/")[1] == name}
        chance = drawn[resolved.index(fpr)] if fpr in resolved else None
        found[f"worst/{name}"] = _best(name, mine, chance)
    return found


def _best(name: str, results: dict[str, MetricResult], chance: np.ndarray | None) -> MetricResult:
    """The largest of `results`, with the chance level of the largest."""
    valued = {key: result for key, result in results.items() if result.value is not None}
    variant = "maximum over attacks and tails"
    if not valued or chance is None:
        result = next(iter(results.values()))
        kept = ("fpr", "status", "needs_calibration", "n_calibration")
        details = {about: result.details[about] for about in kept if about in result.details}
        return replace(result, name=name, value=None, per_item=[], interval=None, variant=variant, details=details)
    key = max(valued, key=lambda key: valued[key].value)
    best = valued[key]
    details = {about: best.details[about] for about in ("fpr", "status", "achieved_fpr", "achieved_fpr_interval")}
    details |= {
        "attack": key.replace(f"/{name}", ""),
        "attacks": len(results),
        "chance": float(chance.mean()),
        "chance_range": [float(q) for q in np.quantile(chance, [ALPHA / 2, 1 - ALPHA / 2])],
        # Counted with the rows as they are: no number of permutations proves a probability of 0.
        "p_chance": float((1 + (chance >= best.value - 1e-12).sum()) / (1 + len(chance))),
    }
    return replace(best, name=name, variant=variant, details=details)
