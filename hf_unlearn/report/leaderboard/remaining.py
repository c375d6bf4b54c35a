# SPDX-License-Identifier: Apache-2.0
"""What is left of the forget rows by all audits of robustness together, run by run."""

import math
from typing import Any

from ..sweep.dominance import Interval, reach_of
from ..sweep.means import UNRESOLVED, Row, is_open


# What is left at worst by all audits of robustness together; and by one, behind its name.
REMAINING, WORST = "remaining", "/worst/remaining"
SUPPRESSED = "suppressed"


def common_audits(runs: list[dict[str, Any]]) -> list[str]:
    """The audits that every attacked run has: others would hold a run against more attacks than another."""
    found = [[name.removesuffix(WORST) for name in run["metrics"] if name.endswith(WORST)] for run in runs]
    found = [kinds for kinds in found if kinds]
    return [kind for kind in found[0] if all(kind in kinds for kinds in found)] if found else []


def with_remaining(run: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """A run with what is left at worst by all these audits; without that where one was not made."""
    metrics = run["metrics"]
    if not kinds or any(f"{kind}{WORST}" not in metrics for kind in kinds):
        return run
    worst = _highest({kind: metrics[f"{kind}{WORST}"] for kind in kinds if not _is_aside(metrics, kind)}, metrics)
    return {**run, "metrics": metrics | {REMAINING: worst}, "values": run["values"] | {REMAINING: worst["value"]}}


def remaining_reach(row: Row, name: str) -> Interval | None:
    """The interval of what is left over all of a row's runs; `None` where one of them is unresolved or not audited."""
    reach = reach_of(row, name)
    if reach is None or any(point.values.get(name) is None for point in row.points):
        return None
    boundless = any(point.run["metrics"][name]["details"].get("boundless") for point in row.points)
    return reach[0], math.inf if boundless else reach[1]


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
