# SPDX-License-Identifier: Apache-2.0
"""How far models that never saw the forget rows differ among themselves: what "like retrained" can mean.

The retrained model that the runs are compared with, those that were audited into the sweep's folder, and every run of
the method `retrain` on the retain rows are such models. Given ones and runs need not have been trained alike: a spread
says which it is of.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from .means import Row, Table, is_share, retrains, t_quantile


# With fewer, what one more would show is anybody's guess.
FEWEST = 3
# What retrained models are called that no run of the sweep made.
GIVEN = "given"


@dataclass(frozen=True)
class Spread:
    """One metric of several retrained models.

    Args:
        ways (`dict[str, tuple[float]]`): how models were made, as far as the sweep knows, to one value a model.
        low, high (`float`): between them one more retrained model is expected, with 95 % (t-interval for one more
            value, of all values); at least one row wider than the values to each side, of shares within 0 and 1.
    """

    ways: dict[str, tuple[float, ...]]
    low: float
    high: float

    @property
    def values(self) -> tuple[float, ...]:
        """One a model."""
        return tuple(value for values in self.ways.values() for value in values)

    def has(self, value: float) -> bool:
        """Whether a retrained model may well show this value."""
        return self.low <= value <= self.high


def retrained_rows(table: Table) -> list[Row]:
    """The rows of retrained models; of the method `retrain` each run is one of them."""
    return [*table.of("retrained"), *(row for row in table.of("result") if is_retrained(row))]


def is_retrained(row: Row) -> bool:
    """Whether a row's runs were trained on the retain rows alone."""
    return row.kind == "retrained" or all(retrains(row.method, p.run["fields"]) for p in row.points)


def retrained_ways(table: Table) -> dict[str, list[Any]]:
    """Every retrained model's values, as points, by how it was made: `given`, or by which row's runs."""
    found: dict[str, list[Any]] = {}
    for row in retrained_rows(table):
        found.setdefault(GIVEN if row.kind == "retrained" else row.name, []).extend(row.points)
    return found


def ways_text(table: Table) -> str:
    """How many retrained models were made in which way."""
    return "; ".join(f"{way}: {len(points)}" for way, points in retrained_ways(table).items())


def spread_of(table: Table, name: str) -> Spread | None:
    """The spread of one metric; `None` for fewer than three retrained models, and where there are several targets."""
    known = {
        way: [point for point in points if point.values.get(name) is not None]
        for way, points in retrained_ways(table).items()
    }
    points = [point for found in known.values() for point in found]
    if len(points) < FEWEST or any(point.run["target"] is not None for point in points):
        return None
    values = [point.values[name] for point in points]
    reach = t_quantile(len(values) - 1) * statistics.stdev(values) * math.sqrt(1 + 1 / len(values))
    mean, row = statistics.fmean(values), _one_row(points, name)
    low, high = min(mean - reach, min(values) - row), max(mean + reach, max(values) + row)
    if is_share(name):
        low, high = max(low, 0.0), min(high, 1.0)
    ways = {way: tuple(point.values[name] for point in found) for way, found in known.items() if found}
    return Spread(ways, low, high)


def _one_row(points: list[Any], name: str) -> float:
    """What one row more or less changes in a share."""
    sizes = [point.run["metrics"][name]["n"] for point in points if name in point.run["metrics"]]
    return 1 / max(sizes) if is_share(name) and sizes and max(sizes) else 0.0
