# SPDX-License-Identifier: Apache-2.0
"""How many members an attack finds at a given rate of false accusations: thresholds, rates, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from ..inputs import finite_scores, score_array, share
from ..result import MetricResult, proportion_interval


DEFAULT_FPRS = (1e-5, 1e-4, 5e-4, 1e-3, 1e-2)
TAILS = ("upper", "lower", "both")
ALPHA = 0.05
# Beyond them no number of rows there is sets a threshold.
SMALLEST_FPR, LARGEST_FPR = 1e-12, 0.999


@dataclass(frozen=True)
class Threshold:
    """Rows strictly above `value` are called members.

    Args:
        value (`float`):
            The `k`-th largest of `n` non-members' scores.
        k (`int`), n (`int`):
            For continuous scores the true FPR is distributed as Beta(k, n + 1 - k), with mean k / (n + 1).
        ties (`int`):
            Non-members that share the value, besides one. They are all below, so the rule is stricter than asked.
    """

    value: float
    k: int
    n: int
    ties: int

    @property
    def chance(self) -> float:
        """Share of the members that scores without meaning would find."""
        return self.k / (self.n + 1)


def fpr_name(fpr: float) -> str:
    """`0.0005` as `5e-4`."""
    digits, exponent = f"{fpr:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def nonmembers_needed(fpr: float) -> int:
    """Calibration non-members from which on a false positive rate is resolved: floor(fpr (n + 1)) is then 1."""
    return math.ceil(1 / share("fpr", fpr) - 1e-9) - 1


def rank_at(n: int, fpr: float) -> int:
    """k = floor(fpr (n + 1)); 0 where `n` non-members cannot resolve the rate."""
    return math.floor(fpr * (n + 1) + 1e-9)


def calibrate(scores: np.ndarray, k: int) -> Threshold:
    """The `k`-th largest of non-members' `scores` `[n]`, `k >= 1`."""
    value = float(np.partition(scores, len(scores) - k)[len(scores) - k])
    return Threshold(value, k, len(scores), int((scores == value).sum()) - 1)


def tail_scores(scores: np.ndarray, centre: float, tail: str) -> np.ndarray:
    """Scores of which the largest are suspicious: high ones, low ones, or those far from what is usual.

    Args:
        scores (`np.ndarray` `[n]`):
            Larger for members.
        centre (`float`):
            Median of the calibration non-members.
        tail (`str`):
            `"upper"`, `"lower"` (finds members of a model that forgot too much) or `"both"`.
    """
    return {"upper": scores, "lower": -scores, "both": np.abs(scores - centre)}[tail]


def tpr_at_fpr(
    members: np.ndarray,
    calibration: np.ndarray,
    evaluation: np.ndarray,
    fpr: float,
    tail: str = "upper",
    effect: float = 1.0,
) -> MetricResult:
    r"""Share of the members above a threshold that non-members set.

    The threshold is the k-th largest of the calibration non-members, \\(k = \lfloor \alpha (n + 1) \rfloor\\), and
    a row must be strictly above it, so that rows with equal scores are called members together or not at all. With
    k = 0 the rate is *unresolved*: the value is `None`, and what can be said, the share above every calibration
    non-member, stands in `details["zero_fp"]`.

    The interval is Clopper-Pearson's, with the number of members divided by a design effect (Korn and Graubard 1998)
    for the threshold's own noise: its place among few non-members is a matter of luck, the same for all members.

    Args:
        members (`np.ndarray` `[n1]`), calibration (`np.ndarray` `[n]`), evaluation (`np.ndarray` `[m]`):
            Scores of members, of the non-members that set the threshold, and of those on which the achieved FPR is
            counted. Finite, larger for members.
        fpr (`float`):
            The rate asked for, in (0, 1).
        tail (`str`):
            As in [`tail_scores`].
        effect (`float`):
            How many rows say as much as one that is independent of the others; see [`BaseAttack`].

    Returns:
        `MetricResult`: per item whether each member was found, `None` where it has no finite score.

    Raises:
        `ValueError`: for a rate or tail that there is not, and for scores that are empty or no numbers.
    """
    name = f"tpr@{fpr_name(share('fpr', fpr, below=True))}"
    columns = _columns(members, calibration, evaluation, tail)
    if columns is None:
        return _undefined(name, members, calibration, evaluation, tail)
    (members, calibration, evaluation), gaps = columns
    k = rank_at(len(calibration), fpr)
    if k > 0:
        return gaps(_rate(name, k, members, calibration, evaluation, tail, effect, {"fpr": fpr}))
    zero = _rate("tpr_zero_fp", 1, members, calibration, evaluation, tail, effect, {})
    details = {
        "fpr": fpr,
        "status": "unresolved",
        "n_calibration": len(calibration),
        "needs_calibration": nonmembers_needed(fpr),
        "zero_fp": {"tpr": zero.value, "interval": list(zero.interval), "chance": zero.details["chance"]},
    }
    variant = f"calibrated {tail}"
    return gaps(MetricResult(name, None, len(members), "closer_to_retrained", variant=variant, details=details))


def tpr_at_zero_fp(
    members: np.ndarray,
    calibration: np.ndarray,
    evaluation: np.ndarray,
    tail: str = "upper",
    effect: float = 1.0,
) -> MetricResult:
    """Share of the members above every calibration non-member: what a small sample can say, whatever its size.

    The rate of false positives behind it is about 1 / (n + 1), and unknown beyond. Arguments as in [`tpr_at_fpr`].
    """
    columns = _columns(members, calibration, evaluation, tail)
    if columns is None:
        return _undefined("tpr_zero_fp", members, calibration, evaluation, tail)
    sets, gaps = columns
    return gaps(_rate("tpr_zero_fp", 1, *sets, tail, effect, {}))


def _columns(members, calibration, evaluation, tail: str):
    """The finite scores of each set, and what puts the members without one back into a result; `None` where a set has
    no finite score."""
    if tail not in TAILS:
        raise ValueError(f"tail={tail!r}; allowed: {', '.join(TAILS)}.")
    given = {"members": members, "calibration": calibration, "evaluation": evaluation}
    found = [finite_scores(name, values)[0] for name, values in given.items()]
    defined = np.isfinite(score_array("members", members))

    def gaps(result: MetricResult) -> MetricResult:
        values = iter(result.per_item)
        per_item = [next(values) if is_defined else None for is_defined in defined] if result.per_item else []
        return replace(result, per_item=per_item, undefined=int((~defined).sum()))

    return (found, gaps) if all(map(len, found)) else None


def _undefined(name: str, members, calibration, evaluation, tail: str) -> MetricResult:
    """What is left where members, or non-members that set or test a threshold, have no finite score."""
    (known, undefined), set_by, tested_by = (
        finite_scores(*pair) for pair in
        (("members", members), ("calibration", calibration), ("evaluation", evaluation))
    )  # fmt: skip
    details = {"status": "undefined", "n_calibration": len(set_by[0]), "n_evaluation": len(tested_by[0])}
    how = {"variant": f"calibrated {tail}", "details": details}
    return MetricResult(name, None, len(known), "closer_to_retrained", undefined=undefined, **how)


def _rate(name, k, members, calibration, evaluation, tail, effect, details) -> MetricResult:
    centre = float(np.median(calibration))
    members, calibration, evaluation = (tail_scores(s, centre, tail) for s in (members, calibration, evaluation))
    threshold = calibrate(calibration, k)
    found = _found(members, evaluation, threshold, effect)
    tied = threshold.ties > 0 and (calibration > threshold.value).sum() < k - 1
    details = {**details, "n_calibration": len(calibration), "n_evaluation": len(evaluation), "design_effect": effect}
    return MetricResult(
        name,
        found["tpr"],
        len(members),
        "closer_to_retrained",
        per_item=(members > threshold.value).astype(float).tolist(),
        interval=_with_threshold_noise(members, calibration, k, effect),
        interval_method="clopper-pearson, design effect of the threshold" + (" and of fits" if effect != 1 else ""),
        variant=f"calibrated {tail}",
        details={**details, "status": "tied" if tied else "resolved", **found},
    )


def _found(members: np.ndarray, evaluation: np.ndarray, threshold: Threshold, effect: float) -> dict[str, Any]:
    """What a threshold does, and what chance would do in its place."""
    k, n, size = threshold.k, threshold.n, len(members)
    hits, false = int((members > threshold.value).sum()), int((evaluation > threshold.value).sum())
    # So many independent members, of which as large a share was found.
    independent = math.ceil(size / effect)
    true_fpr, chances = _chance(independent, k, n, effect)
    places = np.searchsorted(np.cumsum(chances), [ALPHA / 2, 1 - ALPHA / 2])
    achieved = false / len(evaluation)
    return {
        "tpr": hits / size,
        "hits": hits,
        "interval_fixed_threshold": list(proportion_interval(hits / effect, size / effect)),
        "threshold": threshold.value,
        "tied_nonmembers": threshold.ties,
        "achieved_fpr": achieved,
        "achieved_fpr_interval": list(proportion_interval(false / effect, len(evaluation) / effect)),
        "true_fpr_range": list(true_fpr),
        "chance": threshold.chance,
        "chance_range": [int(place) / independent for place in places.clip(max=independent)],
        # Summed from the small end: one less the rest would be 0 below 1e-16.
        "p_chance": min(1.0, float(chances[math.floor(hits * independent / size) :][::-1].sum())),
        "ratio": hits / size / max(achieved, threshold.chance),
    }


@lru_cache(maxsize=64)
def _chance(n_members: int, k: int, n: int, effect: float) -> tuple[list[float], np.ndarray]:
    """95 % range of the true FPR, and the probability of 0 to `n_members` hits, if scores mean nothing."""
    from scipy.stats import beta, betabinom

    shape = k / effect, (n + 1 - k) / effect
    true_fpr = beta.ppf([ALPHA / 2, 1 - ALPHA / 2], *shape).tolist()
    return true_fpr, betabinom.pmf(np.arange(n_members + 1), n_members, *shape)


def _with_threshold_noise(members: np.ndarray, calibration: np.ndarray, k: int, of_fits: float) -> tuple[float, float]:
    from scipy.stats import beta

    n, size = len(calibration), len(members)
    # How likely the k-th largest lies at each place among its neighbours, were non-members drawn anew.
    edges = np.concatenate([[0.0], np.arange(1.5, n), [n + 1.0]]) / (n + 1)
    weights = np.diff(beta.cdf(edges, k / of_fits, (n + 1 - k) / of_fits))
    largest = np.sort(calibration)[::-1]
    rates = 1 - np.searchsorted(np.sort(members), largest, side="right") / size
    mean = float((weights * rates).sum())
    luck = float((weights * (rates - mean) ** 2).sum())
    effect = of_fits + (luck * (size - 1) / (mean * (1 - mean)) if 0 < mean < 1 else 0.0)
    rate = float((members > largest[k - 1]).mean())
    return proportion_interval(rate * size / effect, size / effect)


def roc_tpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float) -> float | None:
    """The largest TPR of the sample's ROC with FPR <= `fpr`, as papers report it; `None` below 1 / non-members.

    The threshold is chosen on the rows that it is counted on: an upper end, not what an attacker could do. `fpr` is in
    (0, 1]; rows without a finite score are left out.
    """
    share("fpr", fpr)
    members, nonmembers = (finite_scores(name, x)[0] for name, x in (("members", members), ("nonmembers", nonmembers)))
    if not len(members) or len(nonmembers) * fpr < 1 - 1e-9:
        return None
    false, true = roc(members, nonmembers)
    return float(true[false <= fpr + 1e-12].max())


def roc(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FPR and TPR of scikit-learn's ROC, all points kept; scores are finite."""
    from sklearn.metrics import roc_curve

    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    return roc_curve(labels, np.concatenate([members, nonmembers]), drop_intermediate=False)[:2]


def auc_result(members: np.ndarray, nonmembers: np.ndarray, effect: float = 1.0) -> MetricResult:
    """Area under the ROC: the chance that a *member* scores above a non-member. Larger is more leakage, below 0.5 is
    forgotten too much. (MUSE's [`~hf_unlearn.audit.holdout_auc`] is the other way round.)

    The interval is Newcombe's (2006, method 5), which stays within [0, 1] and is not empty at 0 and 1; `effect` as in
    [`tpr_at_fpr`]. Rows without a finite score are undefined.
    """
    from sklearn.metrics import roc_auc_score

    members, undefined = finite_scores("members", members)
    nonmembers, left_out = finite_scores("nonmembers", nonmembers)
    gaps = {"undefined_nonmembers": left_out} if left_out else {}
    if not len(members) or not len(nonmembers):
        details = {"n_nonmembers": len(nonmembers), "status": "undefined", **gaps}
        return MetricResult("auc", None, len(members), "closer_to_retrained", undefined=undefined, details=details)
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    value = float(roc_auc_score(labels, np.concatenate([members, nonmembers])))
    return MetricResult(
        "auc",
        value,
        len(members),
        "closer_to_retrained",
        undefined=undefined,
        interval=auc_interval(value, len(members) / effect, len(nonmembers) / effect),
        interval_method="newcombe" + (", design effect of fits" if effect != 1 else ""),
        details={"n_nonmembers": len(nonmembers), "chance": 0.5, "design_effect": effect, **gaps},
    )


def auc_interval(auc: float, n_members: float, n_nonmembers: float) -> tuple[float, float]:
    """95% interval of an AUC, from the sizes alone (Newcombe 2006, method 5)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = norm.ppf(1 - ALPHA / 2)
    mean_size = (n_members + n_nonmembers) / 2 - 1

    def distance(theta: float) -> float:
        spread = 1 + mean_size * (1 - theta) / (2 - theta) + mean_size * theta / (1 + theta)
        return abs(auc - theta) - z * math.sqrt(theta * (1 - theta) * spread / (n_members * n_nonmembers))

    # Of the two roots on each side the one at 0 or 1 is none: there the spread is 0 too.
    low = brentq(distance, 0.0, min(auc, 1 - 1e-12)) if auc > 0 else 0.0
    high = brentq(distance, max(auc, 1e-12), 1.0) if auc < 1 else 1.0
    return float(low), float(high)


def split_nonmembers(n: int, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seeded, disjoint places of non-members: those that set thresholds and those on which the FPR is counted."""
    order = np.random.default_rng(seed).permutation(n)
    cut = min(n - 1, max(1, round(share * n)))
    return np.sort(order[:cut]), np.sort(order[cut:])


def check_fprs(fprs: Sequence[float]) -> list[float]:
    """The rates, smallest first.

    Raises:
        `ValueError`: if there is none, one is no number in (0, 1) or too near its ends, or two share a name.
    """
    rates = [fprs] if fprs is None or isinstance(fprs, Real) else list(fprs)
    good = [isinstance(r, Real) and not isinstance(r, bool) and SMALLEST_FPR <= r <= LARGEST_FPR for r in rates]
    if not rates or not all(good):
        raise ValueError(
            f"fprs={rates!r}; give at least one false positive rate, each above 0 and below 1 ({SMALLEST_FPR:g} to "
            f"{LARGEST_FPR})."
        )
    rates = sorted(set(map(float, rates)))
    for smaller, larger in pairwise(rates):
        if fpr_name(smaller) == fpr_name(larger):
            raise ValueError(
                f"fprs={rates!r}: {smaller!r} and {larger!r} would both be named 'tpr@{fpr_name(smaller)}'. Leave one "
                "out."
            )
    return rates
