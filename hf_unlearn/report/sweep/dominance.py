# SPDX-License-Identifier: Apache-2.0
"""Which rows of a sweep another one is better than, in everything that counts."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..naming import UNDEFINED, format_number, full_label, unit
from ..table import Table as Shown
from ..table import escape
from .means import COSTS, PRIVACY, SECONDS, TERAFLOP, Row, Table, cell_of, cost_text, own_interval
from .spread import spread_of, ways_text


# Two runs of the same work on a shared machine differ by so much.
COST_MARGIN = 0.1
Interval = tuple[float, float]


@dataclass(frozen=True)
class Dominated:
    """A row that another dominates.

    Args:
        row, by (`str`): their names.
        better (`list[str]`): metrics in which the other is better, beyond the intervals.
    """

    row: str
    by: str
    better: list[str]


def dominated(sweep: dict[str, Any], table: Table, names: list[str]) -> list[Dominated]:
    """Pairs of rows: the second is worse than the first in no metric, and better in one.

    A row is better than another in a metric where their intervals do not meet. A row's interval reaches over all of
    its runs, each with its own 95 % interval over items; of costs, from the lowest less 10 % to the highest and
    10 %. Metrics of the forget set count by their distance from the retrained model, if there is one, or from the
    spread of several: below it is no better than at it. A row without a value in a metric dominates none that has one.

    Args:
        sweep (`dict`): the content of `sweep.json`.
        table ([`Table`]): of it.
        names (`list[str]`): the metrics that count; `seconds` or `teraflop` among them if cost does.

    Raises:
        `ValueError`: for a metric that no run has.
    """
    rows = table.of("result")
    for name in names:
        if rows and all(cell_of(row.points, name).mean is None for row in rows) and not _unresolved(rows, name):
            raise ValueError(f"dominance: no run has {name}. Name metrics of the table, `{SECONDS}` or `{TERAFLOP}`.")
    return dominated_ends(ends_of(sweep, table, names))


def dominated_ends(ends: Mapping[str, Mapping[str, Interval | None]]) -> list[Dominated]:
    """The same of rows' intervals by metric, lower is better."""
    found = []
    for (one, mine), (other, theirs) in itertools.permutations(ends.items(), 2):
        better = _better(theirs, mine)
        if better and not _better(mine, theirs):
            found.append(Dominated(one, other, better))
    return found


def ends_of(sweep: dict[str, Any], table: Table, names: list[str]) -> dict[str, dict[str, Interval | None]]:
    """Of every result by its row's name, the interval of each metric so that lower is better: distances from retrained
    models, and metrics of which more is better with the other sign."""
    aims = {name: _aim(table, name) for name in names}
    signs = {name: 1 if aims[name] or _lower_is_better(sweep, name) else -1 for name in names}
    return {
        row.name: {name: _signed(_distance(reach_of(row, name), aims[name]), signs[name]) for name in names}
        for row in table.of("result")
    }


def dominance_lines(sweep: dict[str, Any], table: Table, names: list[str]) -> str:
    """The rows that are dominated, with all that dominate each; then those that nobody dominates."""
    pairs = dominated(sweep, table, names)
    about = (
        f"Dominated: another row is worse in none of {', '.join(map(_label, names))}, and better in one, beyond the "
        "intervals of all runs over their items (of costs ± 10 %). Forget metrics count by their distance from the "
        f"retrained model (where there are three or more, from their spread; here {ways_text(table) or 'none'})."
    )
    by_row: dict[str, list[Dominated]] = {}
    for pair in pairs:
        by_row.setdefault(pair.row, []).append(pair)
    rows = [row.name for row in table.of("result")]
    told = [
        f"- {name}: by " + "; ".join(f"{pair.by} ({', '.join(map(_label, pair.better))})" for pair in by_row[name])
        for name in rows
        if name in by_row
    ]
    free = [name for name in rows if name not in by_row]
    told += [f"- By none: {', '.join(free)}."] if free else []
    return "\n\n".join([about, _reach_table(table, names), "\n".join(told)])


def _reach_table(table: Table, names: list[str]) -> str:
    """The intervals that are compared."""
    heads = ["95 % intervals", *(f"{_label(name)}{f', {unit(name)}' if unit(name) else ''}" for name in names)]
    lines = []
    for row in table.of("target", "retrained", "result"):
        reaches = [reach_of(row, name) for name in names]
        cells = [
            UNDEFINED if reach is None else f"[{', '.join(_shown(name, side) for side in reach)}]"
            for name, reach in zip(names, reaches, strict=True)
        ]
        lines.append([escape(row.name), *cells])
    return Shown(heads, lines, numbers=True).markdown()


def _shown(name: str, value: float) -> str:
    return cost_text(name, value) if name in COSTS else format_number(name, value)


def _label(name: str) -> str:
    return "TPR of the best attack" if name.startswith(PRIVACY) else full_label(name)


def _better(one: Mapping[str, Interval | None], other: Mapping[str, Interval | None]) -> list[str]:
    """The metrics in which a row is better than another, or has a value where that has none."""
    found = []
    for name, mine in one.items():
        theirs = other[name]
        if mine is not None and (theirs is None or mine[1] < theirs[0]):
            found.append(name)
    return found


def reach_of(row: Row, name: str) -> Interval | None:
    """From the lowest to the highest end of the intervals of a row's runs."""
    sides = []
    for point in row.points:
        value = point.values.get(name)
        if value is not None:
            sides += own_interval(point, name) or (value, value)
    if not sides:
        return None
    margin = COST_MARGIN if name in COSTS else 0
    return min(sides) * (1 - margin), max(sides) * (1 + margin)


def _distance(reach: Interval | None, aim: Interval | None) -> Interval | None:
    """How far from what it should be a value may be."""
    if reach is None or aim is None:
        return reach
    low, high = sorted(max(aim[0] - side, 0.0, side - aim[1]) for side in reach)
    return (0.0 if reach[0] <= aim[1] and aim[0] <= reach[1] else low), high


def _signed(reach: Interval | None, sign: int) -> Interval | None:
    return reach if reach is None or sign > 0 else (-reach[1], -reach[0])


def _aim(table: Table, name: str) -> Interval | None:
    """What retrained models show of the forget rows."""
    gold = next(iter(table.of("retrained")), None)
    if gold is None or not name.startswith("forget") or name == "forget_quality":
        return None
    if spread := spread_of(table, name):
        return spread.low, spread.high
    mean = cell_of(gold.points, name).mean
    return None if mean is None else (mean, mean)


def _lower_is_better(sweep: dict[str, Any], name: str) -> bool:
    if name in COSTS or name.startswith(PRIVACY):
        return True
    directions = (run["metrics"][name]["direction"] for run in sweep["runs"] if name in run["metrics"])
    return next(directions, "higher") != "higher"


def _unresolved(rows: list[Row], name: str) -> bool:
    return any(name in point.run.get("unresolved", ()) for row in rows for point in row.points)
