# SPDX-License-Identifier: Apache-2.0
"""All methods of a sweep beside each other: numbers, the retrained models' spread, ranks, and who dominates whom."""

from dataclasses import dataclass, replace
from typing import Any

from ..sweep.dominance import Dominated, Interval, dominated_ends, ends_of
from ..sweep.means import PRIVACY, SECONDS, Row, Table, tabulate
from ..sweep.ranks import Rank, overall_ranks, ranks
from ..sweep.spread import Spread, retrained_ways, spread_of
from .remaining import REMAINING, WORST, common_audits, remaining_reach, with_remaining


FORGET = (
    "forget_quality", "forget/exact_match", "forget/probability", "forget/rouge", "forget/truth_ratio",
    "forget/extraction_strength", "forget_paraphrased/exact_match", "forget_paraphrased/rouge",
)  # fmt: skip
KEPT = (
    "retain/exact_match", "retain/probability", "retain/rouge", "neighbor_qa/rouge", "real_authors/rouge",
    "real_authors/probability", "world_facts/rouge", "world_facts/probability", "model_utility",
)  # fmt: skip
INSIDE, BELOW, ABOVE, MIXED = "like retrained", "below", "above", "not alike in every run"


@dataclass
class Board:
    """What the page shows.

    Args:
        sweep (`dict`): the content of `sweep.json`, with `remaining` among the runs' metrics.
        table ([`Table`]): of it.
        rows (`list[Row]`): methods, by overall rank.
        forget, kept, privacy (`list[str]`): metrics that there are, in order.
        audits (`list[str]`): kinds of robustness audits.
        common (`list[str]`): those that every run has that was attacked at all; `remaining` is of these.
        counted (`list[str]`): metrics that the overall rank counts.
        spreads (`dict[str, Spread]`): of the forget metrics and attacks, where there are enough retrained models.
        ranks (`dict[str, dict[str, Rank]]`): metric to row's name to rank.
        overall (`dict[str, Rank]`), pairs (`list[Dominated]`): by what is counted.
    """

    sweep: dict[str, Any]
    table: Table
    rows: list[Row]
    forget: list[str]
    kept: list[str]
    privacy: list[str]
    audits: list[str]
    common: list[str]
    counted: list[str]
    spreads: dict[str, Spread]
    ranks: dict[str, dict[str, Rank]]
    overall: dict[str, Rank]
    pairs: list[Dominated]

    @property
    def retrained(self) -> dict[str, int]:
        """How many retrained models there are, by how they were made."""
        return {way: len(points) for way, points in retrained_ways(self.table).items()}

    def tells(self, name: str) -> bool:
        """Whether the models that knew the forget rows lie outside of the spread: inside, it calls nobody unlike."""
        known = [point.values.get(name) for row in self.table.of("target") for point in row.points]
        return not any(value is not None and self.spreads[name].has(value) for value in known)

    def called(self, row: Row, name: str) -> str | None:
        """Where a row's runs lie beside the spread of a metric; `None` where nothing can be said."""
        spread = self.spreads.get(name)
        values = [point.values.get(name) for point in row.points]
        if spread is None or not values or None in values or not self.tells(name):
            return None
        places = {INSIDE if spread.has(value) else BELOW if value < spread.low else ABOVE for value in values}
        return places.pop() if len(places) == 1 else MIXED


def board_of(sweep: dict[str, Any]) -> Board:
    """A [`Board`] of the content of `sweep.json`.

    Raises:
        `ValueError`: if there is no finished run, or the sweep's rule or metrics cannot be applied.
    """
    if not sweep["runs"]:
        raise ValueError(f"No run of {sweep['settings']['name']} is finished: there is nothing to show.")
    kinds = common_audits(sweep["runs"])
    sweep = {**sweep, "runs": [with_remaining(run, kinds) for run in sweep["runs"]]}
    table = tabulate(sweep)
    rows, found = table.of("result"), _names(sweep)
    if not rows:
        raise ValueError(f"No run of {sweep['settings']['name']} is chosen by its rule ({table.rule}).")
    forget, kept = ([name for name in names if name in found] for names in (FORGET, KEPT))
    asked = [name for name in sweep["settings"].get("metrics") or () if name not in (*forget, *kept)]
    forget += [name for name in asked if name.startswith("forget")]
    kept += [name for name in asked if not name.startswith("forget")]
    privacy = [name for name in found if name.startswith(PRIVACY) and _is_shown(name)]
    audits = [name.removesuffix(WORST) for name in found if name.endswith(WORST)]
    counted = _counted(sweep, table, rows)
    ends = {row: dict(ends) for row, ends in ends_of(sweep, table, counted).items()}
    if REMAINING in counted:
        for row in rows:
            ends[row.name][REMAINING] = remaining_reach(row, REMAINING)
    pairs = _surely(dominated_ends(ends), ends)
    overall = overall_ranks([row.name for row in rows], pairs)
    return Board(
        sweep=sweep,
        table=table,
        rows=sorted(rows, key=lambda row: (*overall[row.name], row.name)),
        forget=forget,
        kept=kept,
        privacy=privacy,
        audits=audits,
        common=kinds,
        counted=counted,
        spreads={name: spread for name in (*forget, *privacy) if (spread := _spread(table, name)) is not None},
        ranks={name: ranks({row: own[name] for row, own in ends.items()}) for name in counted},
        overall=overall,
        pairs=pairs,
    )


def _counted(sweep: dict[str, Any], table: Table, rows: list[Row]) -> list[str]:
    names = sweep["settings"].get("dominance") or [table.forget, table.utility, SECONDS]
    names = [name for name in dict.fromkeys(names) if name is not None]
    audited = all(REMAINING in point.run["metrics"] for row in rows for point in row.points)
    return [*names, *([REMAINING] if audited and REMAINING not in names else [])]


def _surely(pairs: list[Dominated], ends: dict[str, dict[str, Interval | None]]) -> list[Dominated]:
    """Without the pairs whose second is only better in what is not known of the first."""
    found = ((pair, [name for name in pair.better if ends[pair.row][name] is not None]) for pair in pairs)
    return [replace(pair, better=better) for pair, better in found if better]


def _spread(table: Table, name: str) -> Spread | None:
    # A p-value of the comparison with one of them is no property of a model.
    return None if name == "forget_quality" else spread_of(table, name)


def _names(sweep: dict[str, Any]) -> list[str]:
    """All metrics of the runs; those of attacks on scores begin with `privacy/`."""
    found: dict[str, None] = {}
    for run in sweep["runs"]:
        found |= dict.fromkeys(run["metrics"])
        found |= dict.fromkeys(f"{PRIVACY}{name}" for name in (run["privacy"] or {}).get("metrics", ()))
    return list(found)


def _is_shown(name: str) -> bool:
    """How well each attack tells forget from holdout rows, and the best one's rate."""
    parts = name.removeprefix(PRIVACY).split("/")
    return len(parts) == 2 and (parts[1] == "auc" or (parts[0] == "worst" and "@" in parts[1]))
