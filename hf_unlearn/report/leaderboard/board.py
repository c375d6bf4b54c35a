# SPDX-License-Identifier: Apache-2.0
"""All methods of a sweep beside each other: numbers, the retrained models' spread, ranks, and who dominates whom."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ..sweep.dominance import Dominated, Interval, dominated_ends, ends_of, reach_of
from ..sweep.means import PRIVACY, SECONDS, UNRESOLVED, Row, Table, is_open, tabulate
from ..sweep.ranks import Rank, overall_ranks, ranks
from ..sweep.spread import Spread, retrained_points, spread_of


# What is left at worst by all audits of robustness together; and by one, behind its name.
REMAINING, WORST = "remaining", "/worst/remaining"
SUPPRESSED = "suppressed"
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
    def retrained(self) -> int:
        """How many retrained models there are."""
        return len(retrained_points(self.table))

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
    kinds = _common(sweep["runs"])
    sweep = {**sweep, "runs": [_with_remaining(run, kinds) for run in sweep["runs"]]}
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


def remaining_reach(row: Row, name: str) -> Interval | None:
    """The interval of what is left over all of a row's runs; `None` where one of them is unresolved or not audited."""
    reach = reach_of(row, name)
    if reach is None or any(point.values.get(name) is None for point in row.points):
        return None
    boundless = any(point.run["metrics"][name]["details"].get("boundless") for point in row.points)
    return reach[0], math.inf if boundless else reach[1]


def _counted(sweep: dict[str, Any], table: Table, rows: list[Row]) -> list[str]:
    names = sweep["settings"].get("dominance") or [table.forget, table.utility, SECONDS]
    names = [name for name in dict.fromkeys(names) if name is not None]
    audited = all(REMAINING in point.run["metrics"] for row in rows for point in row.points)
    return [*names, *([REMAINING] if audited and REMAINING not in names else [])]


def _surely(pairs: list[Dominated], ends: dict[str, dict[str, Interval | None]]) -> list[Dominated]:
    """Without the pairs whose second is only better in what is not known of the first."""
    found = ((pair, [name for name in pair.better if ends[pair.row][name] is not None]) for pair in pairs)
    return [replace(pair, better=better) for pair, better in found if better]


def _common(runs: list[dict[str, Any]]) -> list[str]:
    """The audits that every attacked run has: others would hold a run against more attacks than another."""
    found = [[name.removesuffix(WORST) for name in run["metrics"] if name.endswith(WORST)] for run in runs]
    found = [kinds for kinds in found if kinds]
    return [kind for kind in found[0] if all(kind in kinds for kinds in found)] if found else []


def _with_remaining(run: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """A run with what is left at worst by all these audits; without that where one was not made."""
    metrics = run["metrics"]
    if not kinds or any(f"{kind}{WORST}" not in metrics for kind in kinds):
        return run
    worst = _highest({kind: metrics[f"{kind}{WORST}"] for kind in kinds if not _is_aside(metrics, kind)}, metrics)
    return {**run, "metrics": metrics | {REMAINING: worst}, "values": run["values"] | {REMAINING: worst["value"]}}


def _highest(found: dict[str, dict[str, Any]], metrics: dict[str, Any]) -> dict[str, Any]:
    """The highest of several audits, between the highest of the lower and of the upper ends. What an audit left open
    may be higher: then only what surely came back is a value, and its upper end is that of all."""
    known = {kind: metric for kind, metric in found.items() if metric["value"] is not None and not is_open(metric)}
    undecided = [part for kind in found for part in _undecided(metrics, kind)]
    sure = any(metric["details"].get("verdict") == SUPPRESSED for metric in known.values())
    if not known or (not sure and len(known) < len(found)):
        details = {"verdict": UNRESOLVED, "status": UNRESOLVED}
        return {"value": None, "interval": None, "n": 0, "direction": "lower", "variant": None, "details": details}
    kind = max(known, key=lambda kind: known[kind]["value"])
    ends = [metric["interval"] or (metric["value"], metric["value"]) for metric in known.values()]
    highs = [end[1] for end in ends] + [end for part in undecided if (end := _upper(part)) is not None]
    boundless = any(_upper(part) is None for part in undecided)
    details = {**known[kind]["details"], "audit": kind, "boundless": boundless}
    return {**known[kind], "interval": [max(end[0] for end in ends), max(highs)], "details": details}


def _parts(metrics: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """What one audit says of each of its attacks and scores."""
    names = (name for name in metrics if name.startswith(f"{kind}/") and name.endswith("/remaining"))
    return [metrics[name] for name in names if not name.endswith(WORST)]


def _undecided(metrics: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [part for part in _parts(metrics, kind) if part["value"] is None and not _says_nothing(part)]


def _is_aside(metrics: dict[str, Any], kind: str) -> bool:
    """Whether the original model shows nothing under this audit either, so that it leaves nothing open."""
    parts = _parts(metrics, kind)
    return bool(parts) and all(part["value"] is None and _says_nothing(part) for part in parts)


def _says_nothing(part: dict[str, Any]) -> bool:
    return bool(part["details"].get("idle") or part["details"].get("optional"))


def _upper(part: dict[str, Any]) -> float | None:
    """The upper end of a result that is open; `None` where it has none."""
    details = part["details"]
    return None if None in (ends := (details.get("estimate"), details.get("half"))) else sum(ends)


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
