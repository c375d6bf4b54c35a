# SPDX-License-Identifier: Apache-2.0
"""Intervals of what a gate is about: a metric, or the difference between two models' metrics."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from ..naming import PERCENT, metric_of


PRIVACY = "privacy/"
# From 0 to 1 though not shown in percent.
ALSO_SHARES = {"divergence", "forget_quality", "model_utility", "p_max", "prediction_entropy"}
NEVER_NEGATIVE = {"covariance_distance", "logit_mse", "mean_shift", "representation_mse"}


@dataclass(frozen=True)
class Number:
    """A value with its 95% interval (`None` where there is none), the items behind it and how they were compared."""

    value: float
    interval: tuple[float, float] | None
    n: int
    method: str | None = None


def span(name: str) -> tuple[float, float]:
    """The values that a metric can take."""
    if name.startswith(PRIVACY) or metric_of(name) in PERCENT | ALSO_SHARES:
        return 0.0, 1.0
    return (0.0 if metric_of(name) in NEVER_NEGATIVE else -math.inf), math.inf


def number(metric: dict) -> Number:
    """A metric's value and interval, as the report has them."""
    interval = None if metric["interval"] is None else tuple(metric["interval"])
    return Number(metric["value"], interval, metric["n"])


def difference(name: str, mine: dict, other: dict, paired: dict | None = None) -> Number:
    """A metric less another model's.

    Args:
        name (`str`):
            The metric.
        mine (`dict`), other (`dict`):
            Both models' results. Where both hold `per_item`, of the same items, the difference is taken item by item
            (see [`paired_difference`]). Otherwise its interval reaches from the lowest to the highest difference of
            the two intervals, which is wider than need be unless one model gains where the other loses.
        paired (`dict`, *optional*):
            The difference as an attack's evaluation has it.

    Returns:
        [`Number`]
    """
    if paired is not None and paired["interval"] is not None:
        return Number(paired["value"], tuple(paired["interval"]), paired["n"], "paired")
    items = [metric.get("per_item") or [] for metric in (mine, other)]
    pairs = [(a, b) for a, b in zip(*items, strict=False) if a is not None and b is not None]
    if pairs and len(items[0]) == len(items[1]):
        found = paired_difference([a - b for a, b in pairs], span(name) == (0.0, 1.0))
        if found.interval is not None:
            return found
    value, n = mine["value"] - other["value"], min(mine["n"], other["n"])
    if None in (mine["interval"], other["interval"]):
        return Number(value, None, n)
    (low, high), (other_low, other_high) = mine["interval"], other["interval"]
    return Number(value, (low - other_high, high - other_low), n, "both intervals")


def paired_difference(differences: list[float], shares: bool) -> Number:
    """
    The mean of differences `d_i`, with a 95% interval.

    Of items in [0, 1] it is that of Bonett and Price (2012) for paired proportions: two more items, of 1 and -1, and
    then `m ± 1.96 sqrt(v / (n + 2))` with their mean `m` and variance `v` (divisor `n + 2`). So it keeps a width where
    no item differs. Of other items it is Student's, and there is none if all differ alike.

    Args:
        differences (`list[float]`):
            `d_i`, at least one.
        shares (`bool`):
            Whether items lie in [0, 1].
    """
    n, value = len(differences), math.fsum(differences) / len(differences)
    if shares:
        more = [*differences, 1.0, -1.0]
        mean = math.fsum(more) / len(more)
        variance = math.fsum((d - mean) ** 2 for d in more) / len(more)
        half = NormalDist().inv_cdf(0.975) * math.sqrt(variance / len(more))
        return Number(value, (max(-1.0, mean - half), min(1.0, mean + half)), n, "paired")
    variance = math.fsum((d - value) ** 2 for d in differences) / max(n - 1, 1)
    if variance == 0:
        return Number(value, None, n)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return Number(value, (value - half, value + half), n, "paired")
