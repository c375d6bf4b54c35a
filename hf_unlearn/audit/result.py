# SPDX-License-Identifier: Apache-2.0
"""One metric's outcome: value, per-item values, how many, how sure, and which way is better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .inputs import numbers


ROLES = ("forget", "retain", "holdout")
DIRECTIONS = ("higher", "lower", "closer_to_retrained", "none")
RESAMPLES = 2000
# Means of items that lie in [0, 1], by definition.
SHARES = frozenset(
    {"accuracy", "exact_memorization", "extraction_strength", "probability", "rouge", "shuffled_accuracy"}
)


@dataclass(frozen=True)
class MetricResult:
    """A number with everything needed to read it.

    Args:
        name (`str`):
            The metric, without its set: `"probability"`.
        value (`float`, *optional*):
            `None` where no item defines it.
        n (`int`):
            Items behind the value, undefined ones not counted.
        direction (`str`):
            `"higher"`, `"lower"`, `"closer_to_retrained"` or `"none"`: what is better.
        per_item (`list`):
            One value an item in the order of the items, `None` where undefined.
        undefined (`int`):
            Items without a value (no labelled token, no wrong answer, NaN from a diverged model, ...).
        interval (`tuple`, *optional*):
            95% interval; `None` where the sample says nothing (one item, or equal values in all items that are no
            end of the metric's range).
        interval_method (`str`, *optional*):
            `"clopper-pearson"`, `"clopper-pearson (all items 0 or all 1)"` or `"bootstrap percentile"`.
        variant (`str`, *optional*):
            Which of the definitions in use.
        details (`dict`):
            Further numbers, such as the statistic behind a p-value.

    Raises:
        `ValueError`: for NaN or infinity in any of them, and for another direction.
    """

    name: str
    value: float | None
    n: int
    direction: str
    per_item: list[float | None] = field(default_factory=list)
    undefined: int = 0
    interval: tuple[float, float] | None = None
    interval_method: str | None = None
    variant: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"{self.name}: direction={self.direction!r}; allowed: {', '.join(DIRECTIONS)}.")
        parts = {"value": self.value, "interval": self.interval, "per_item": self.per_item, "details": self.details}
        bad = [part for part, held in parts.items() if _holds_non_finite(held)]
        if bad:
            raise ValueError(
                f"{self.name}: {', '.join(bad)} holds NaN or infinity. What is undefined is None, and counted in "
                "`undefined`."
            )

    def to_dict(self, per_item: bool = False) -> dict[str, Any]:
        """The result as JSON holds it; `per_item=True` adds the values of all items."""
        result = {
            "value": self.value,
            "n": self.n,
            "undefined": self.undefined,
            "interval": None if self.interval is None else list(self.interval),
            "interval_method": self.interval_method,
            "direction": self.direction,
            "variant": self.variant,
            "details": self.details,
        }
        return {**result, "per_item": self.per_item} if per_item else result

    @classmethod
    def from_dict(cls, name: str, saved: dict[str, Any]) -> "MetricResult":
        """The result that `to_dict` wrote."""
        interval = saved["interval"]
        return cls(**{**saved, "name": name, "interval": None if interval is None else tuple(interval)})


def check_saved(saved: Any, kind: str, version: int, parts: Sequence[str]) -> None:
    """Refuses what is no saved result of this version.

    Args:
        saved (`Any`):
            What the file held.
        kind (`str`):
            `"audit"`, `"privacy"`, ...; the version stands under `<kind>_version`.
        version (`int`), parts (`Sequence[str]`):
            Which version, and what it holds.

    Raises:
        `ValueError`: in one line.
    """
    key = f"{kind}_version"
    found = saved.get(key) if isinstance(saved, dict) else None
    if found != version:
        raise ValueError(
            f"This is no {kind.replace('_', ' ')} that this version of hf_unlearn can read: {key}={found!r}, needs "
            f"{version}. Audit the checkpoint again."
        )
    if missing := [part for part in parts if part not in saved]:
        raise ValueError(f"The saved {kind.replace('_', ' ')} lacks {', '.join(missing)}. Audit the checkpoint again.")


def direction_for(metric: str, role: str) -> str:
    """What is better for a metric of knowledge on a set of this role.

    The truth ratio of forgotten facts has no good end of its own: its aim is what the retrained model shows.
    """
    if role not in ROLES:
        raise ValueError(f"Unknown role {role!r}. Allowed: {', '.join(ROLES)}.")
    if role == "forget" and metric == "truth_ratio":
        return "closer_to_retrained"
    return {"forget": "lower", "retain": "higher", "holdout": "none"}[role]


def finite(value: Any) -> float | None:
    """`value` as a float, or `None` if it is `None`, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def mean_result(name: str, per_item: Sequence[float | None], direction: str, **fields: Any) -> MetricResult:
    """The mean over the defined items, with a bootstrap interval.

    Resamples of items that are all 0 (or all 1) are all alike. Where items lie in [0, 1], the mean is at most the
    share of items above 0, so the exact interval of 0 in n holds it too; likewise that of n in n, from below. NaN and
    infinity are undefined.
    """
    per_item = numbers(name, per_item)
    values = _defined(per_item)
    interval, method = bootstrap_interval(values), "bootstrap percentile"
    if name in SHARES and len(values) and (not values.any() or (values == 1).all()):
        interval = proportion_interval(int(values.sum()), len(values))
        method = "clopper-pearson (all items 0 or all 1)"
    return _result(name, per_item, values, direction, interval, method, **fields)


def proportion_result(name: str, per_item: Sequence[float | None], direction: str, **fields: Any) -> MetricResult:
    """The share of ones among items that are 0 or 1, with the exact Clopper-Pearson interval. NaN is
    undefined."""
    per_item = numbers(name, per_item)
    if wrong := [value for value in per_item if value not in (None, 0, 1)]:
        raise ValueError(f"{name} is a share of ones, and an item is {wrong[0]!r}; give 0, 1 or None.")
    values = _defined(per_item)
    interval = proportion_interval(int(values.sum()), len(values))
    return _result(name, per_item, values, direction, interval, "clopper-pearson", **fields)


def proportion_interval(successes: float, n: float) -> tuple[float, float] | None:
    """Exact two-sided 95% Clopper-Pearson interval of `successes` in `n`, which need not be whole; `None` for
    `n = 0`."""
    from scipy.stats import beta

    if n == 0:
        return None
    low = beta.ppf(0.025, successes, n - successes + 1) if successes > 0 else 0.0
    high = beta.ppf(0.975, successes + 1, n - successes) if successes < n else 1.0
    return float(low), float(high)


def bootstrap_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float] | None:
    """95% percentile interval of the mean over `resamples` seeded resamples of `values`, shape `[n]`.

    `None` for fewer than two values and for equal values: every resample is then the same, and an interval of width 0
    would claim a certainty that the sample does not give.
    """
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return None
    rng = np.random.default_rng(seed)
    rows = max(1, 2**20 // n)
    means = [
        values[rng.integers(n, size=(min(rows, resamples - done), n))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _defined(per_item: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in per_item if value is not None], dtype=np.float64)


def _result(name, per_item, values, direction, interval, method, **fields) -> MetricResult:
    return MetricResult(
        name=name,
        value=float(values.mean()) if len(values) else None,
        n=len(values),
        direction=direction,
        per_item=per_item,
        undefined=len(per_item) - len(values),
        interval=interval,
        interval_method=None if interval is None else method,
        **fields,
    )


def _holds_non_finite(held: Any) -> bool:
    if isinstance(held, dict):
        return any(map(_holds_non_finite, held.values()))
    if isinstance(held, (list, tuple)):
        return any(map(_holds_non_finite, held))
    return isinstance(held, (float, np.floating)) and not math.isfinite(held)
