# SPDX-License-Identifier: Apache-2.0
"""`remaining`: how much of what was known is left, held against a model that never knew it."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ..result import MetricResult, proportion_interval


# What a retrained model does not know and the original does must be at least this, or there was nothing to forget.
LEAST_KNOWN = 0.1
FEWEST_GROUPS = 4
ALL_ZERO, ALL_LEFT = "clopper-pearson (0 in all groups)", "clopper-pearson (as the original in all groups)"
SUPPRESSED, NOT_RECOVERED, UNRESOLVED = "suppressed", "not recovered within budget", "unresolved"


def remaining(
    u: Sequence[float | None],
    r: Sequence[float | None],
    o: Sequence[float | None],
    groups: Sequence[Hashable],
    *,
    holdout_groups: Sequence[Hashable] | None = None,
    name: str = "remaining",
    bound: float = 0.2,
    resolution: float = 0.15,
    **details: Any,
) -> MetricResult:
    """The share of what the original model shows, and one that never knew does not, that the unlearned model shows:

        remaining = mean(u - r) / mean(o - r)

    1 for the original, 0 for a retrained model, whatever an attack taught all three; below 0 the unlearned model is
    worse than one that never knew. The 95 % interval is that of the linearised ratio, over groups: with
    `z_i = ((u_i - r_i) - remaining (o_i - r_i)) / mean(o - r)` summed in each of `G` groups of equal weight,
    `remaining ± t_{.975, G-1} sd(z) / sqrt(G)`. Rows of one person are not independent, and a bootstrap over rows is
    far too narrow then.

    Args:
        u, r, o (`Sequence[float | None]` `[n]`):
            Scores of the unlearned, the retrained and the original model on the same rows, attacked alike. Rows that
            one of them leaves undefined are left out.
        groups (`Sequence` `[n]`):
            The person or document of each row.
        holdout_groups (`Sequence` `[m]`, *optional*):
            With it, `r` `[m]` are scores of other rows, that no model saw, in the unlearned model.
        bound (`float`), resolution (`float`):
            A result is unresolved where half its interval is wider than `resolution` and it holds `bound`.
        details: kept with the result.

    Returns:
        `MetricResult`: `None` where it is unresolved; `details` has the `reason`, and the `estimate`.
    """
    total = len(u)
    if holdout_groups is None:
        kept = [i for i in range(len(u)) if None not in (u[i], r[i], o[i])]
        r = np.array([r[i] for i in kept], dtype=np.float64)
    else:
        kept = [i for i in range(len(u)) if None not in (u[i], o[i])]
        other = [i for i in range(len(r)) if r[i] is not None]
        h, h_groups = np.array([r[i] for i in other], dtype=np.float64), [holdout_groups[i] for i in other]
        r = h.mean() if len(h) else math.nan
    u, o = (np.array([values[i] for i in kept], dtype=np.float64) for values in (u, o))
    groups = [groups[i] for i in kept]
    n, found = len(kept), len({*groups})
    details = {"clusters": found, **details}
    how = {"n": n, "direction": "lower", "undefined": total - n}

    def result(value, interval, method, **more):
        return MetricResult(name, value, interval=interval, interval_method=method, details={**details, **more}, **how)

    def unresolved(reason: str, **more) -> MetricResult:
        return result(None, None, None, status=UNRESOLVED, reason=reason, **more)

    if n == 0 or not np.isfinite(r).all() or (holdout_groups is not None and not len(h)):
        return unresolved("no row is scored in all models")
    known = float((o - r).mean())
    half = _half(o - r - known, groups)
    if holdout_groups is not None and half is not None:
        half = math.hypot(half, _half(h - r, h_groups) or 0.0)
    if known - (half or 0.0) < LEAST_KNOWN:
        return unresolved(
            f"the original model knows {known:+.2f} more than one that never knew the rows: too little was there to "
            "forget",
            known=known,
            idle=True,
        )
    value = float((u - r).mean()) / known
    if found < FEWEST_GROUPS:
        return unresolved(
            f"{found} group{'s' * (found != 1)} of rows; an interval requires {FEWEST_GROUPS}", estimate=value
        )
    if holdout_groups is not None and len({*h_groups}) < FEWEST_GROUPS:
        several = "s" * (len({*h_groups}) != 1)
        return unresolved(
            f"{len({*h_groups})} group{several} of holdout rows; an interval requires {FEWEST_GROUPS}", estimate=value
        )
    half = _half(((u - r) - value * (o - r)) / known, groups)
    if holdout_groups is not None:
        # `r` is the mean of other rows, drawn by itself.
        half = math.hypot(half, (_half(h - r, h_groups) or 0.0) * (1 - value) / known)
    interval, method = (value - half, value + half), "t over groups, linearised ratio"
    if half == 0:
        interval = method = None
        if not u.any() and not np.any(r):
            # 0 in every group: as many groups hold it, as `mean_result` says of rows.
            interval, method = (0.0, proportion_interval(0, found)[1]), ALL_ZERO
        elif np.array_equal(u, o):
            # Nothing changed in any group. Without an interval a gate could not fail where everything is left.
            interval, method = (proportion_interval(found, found)[0], 1.0), ALL_LEFT
    if half > resolution and value - half < bound < value + half:
        return unresolved(
            f"{value:.2f} ± {half:.2f} leaves open whether it is above {bound:g}", estimate=value, half=half
        )
    return result(value, interval, method, status="resolved", known=known)


def decides(result: MetricResult) -> bool:
    """Whether a result takes part in "nothing came back": 0 in each of a few groups bounds nothing, and scores that
    are finer than exact answers stand beside it."""
    return result.interval_method != ALL_ZERO


def verdict(results: Sequence[MetricResult], bound: float = 0.2) -> str:
    """What `remaining` of one or several settings says: [`SUPPRESSED`] if one is above `bound`, [`NOT_RECOVERED`] if
    all that decide are below, else [`UNRESOLVED`]."""
    ends = [_ends(result) for result in results if decides(result)]
    if any(end is not None and end[0] > bound for end in ends):
        return SUPPRESSED
    return NOT_RECOVERED if ends and all(end is not None and end[1] <= bound for end in ends) else UNRESOLVED


def _ends(result: MetricResult) -> tuple[float, float] | None:
    if result.value is None:
        return None
    return result.interval or (result.value, result.value)


def _half(values: np.ndarray, groups: Sequence[Hashable]) -> float | None:
    """Half the 95 % t interval of a mean whose rows come in groups; values are centred; `None` for one group."""
    from scipy.stats import t

    names = sorted({*groups}, key=str)
    if len(names) < 2:
        return None
    place = {name: i for i, name in enumerate(names)}
    sums = np.bincount([place[group] for group in groups], weights=values, minlength=len(names))
    # A group weighs as many rows as it has; of equal groups this is the mean of their means.
    scaled = sums * len(names) / len(values)
    return float(t.ppf(0.975, len(names) - 1) * scaled.std(ddof=1) / math.sqrt(len(names)))
