# SPDX-License-Identifier: Apache-2.0
"""Ranks as intervals: which places a row may have, where the runs cannot tell all rows apart."""

from collections.abc import Iterable, Mapping

from .dominance import Dominated, Interval


Rank = tuple[int, int]
RULE = (
    "A rank is an interval. By one number, a method's best rank is 1 more than how many are surely better, its worst "
    "rank the number of methods less how many are surely worse; surely means that the intervals over all runs and "
    "their items do not meet (costs: ± 10 %). The overall rank counts in the same way those that dominate a method "
    "and those that it dominates. Methods whose ranks overlap are not told apart by these runs."
)


def ranks(ends: Mapping[str, Interval | None]) -> dict[str, Rank]:
    """Best and worst rank of every row by one metric.

    Args:
        ends (`dict`): row to interval, lower is better; `None` where it has no value: such a row has every rank, and
            bounds no other's.
    """
    known = {row: end for row, end in ends.items() if end is not None}
    found = {}
    for row in ends:
        if row not in known:
            found[row] = (1, len(ends))
            continue
        low, high = known[row]
        better = sum(other[1] < low for other in known.values())
        worse = sum(high < other[0] for other in known.values())
        found[row] = (1 + better, len(ends) - worse)
    return found


def overall_ranks(rows: Iterable[str], pairs: Iterable[Dominated]) -> dict[str, Rank]:
    """Best and worst rank of every row by who dominates whom."""
    rows, pairs = list(rows), list(pairs)
    return {
        row: (1 + sum(pair.row == row for pair in pairs), len(rows) - sum(pair.by == row for pair in pairs))
        for row in rows
    }


def rank_text(rank: Rank) -> str:
    """`3` or `3–12`."""
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"
