# SPDX-License-Identifier: Apache-2.0
"""What a change to the same questions did: paired differences, exact for right and wrong, bootstrapped for grades."""

import math
from collections.abc import Sequence
from numbers import Integral

from ..inputs import numbers, same_length
from ..result import MetricResult, mean_result


def gain(
    name: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    direction: str = "none",
    binary: bool = False,
    what: str = "gain",
) -> MetricResult:
    """Mean of `after - before` over the items that have both: attack success, where `after` is with the trigger.

    Values that are 0 or 1 get the exact McNemar test and Newcombe's interval, which also holds where every item
    changed or none did; others the bootstrap over items (pairs stay together).

    Args:
        name (`str`):
            Of the metric; the result is called `<name>_<what>`.
        before, after (`Sequence[float]`):
            One value an item, of the same items; `None` where undefined.
        direction (`str`):
            What is better.
        binary (`bool`):
            Whether the values are 0 or 1.
        what (`str`):
            What the difference is called.

    Returns:
        `MetricResult`: value in [-1, 1] for metrics in [0, 1]; for binary metrics `details` holds `gained`, `lost` and
        `mcnemar_p`.

    Raises:
        `ValueError`: for lists of other lengths, what are no numbers, or with `binary` others than 0 and 1.
    """
    before, after = numbers("before", before), numbers("after", after)
    same_length({"before": len(before), "after": len(after)})
    differences = [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]
    if not binary:
        return mean_result(f"{name}_{what}", differences, direction, variant="paired difference")
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    both, gained = pairs.count((1, 1)), pairs.count((0, 1))
    lost, neither = pairs.count((1, 0)), pairs.count((0, 0))
    if both + gained + lost + neither != len(pairs):
        raise ValueError(f"{name} is not 0 or 1 in every item; compare it with `binary=False`.")
    return MetricResult(
        name=f"{name}_{what}",
        value=(gained - lost) / len(pairs) if pairs else None,
        n=len(pairs),
        direction=direction,
        per_item=differences,
        undefined=len(differences) - len(pairs),
        interval=newcombe_interval(both, gained, lost, neither) if pairs else None,
        interval_method="Newcombe, paired" if pairs else None,
        variant="paired difference",
        details={"gained": gained, "lost": lost, "mcnemar_p": mcnemar(gained, lost)},
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: are both directions of change equally likely? 1 without changes."""
    from scipy.stats import binomtest

    for name, count in (("gained", gained), ("lost", lost)):
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{name}={count!r}; give a number of items, 0 or more.")
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def newcombe_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """95% interval of the difference of two paired shares, `(gained - lost) / n`.

    Newcombe 1998, *Improved confidence intervals for the difference between binomial proportions based on paired
    data*, method 10: Wilson's intervals of the two shares, joined with their correlation.

    Args:
        both, gained, lost, neither (`int`):
            Items right before and after, only after, only before, and never.
    """
    from scipy.stats import binomtest

    n = both + gained + lost + neither
    after, before = (both + gained) / n, (both + lost) / n
    above, below = (binomtest(k, n).proportion_ci(method="wilson") for k in (both + gained, both + lost))
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    product = both * neither - gained * lost
    phi = 0.0 if margins == 0 else (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins)

    def width(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = after - before
    low = difference - width(after - above.low, below.high - before)
    high = difference + width(above.high - after, before - below.low)
    return max(float(low), -1.0), min(float(high), 1.0)
