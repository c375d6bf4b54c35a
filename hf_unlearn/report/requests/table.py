# SPDX-License-Identifier: Apache-2.0
"""Requests as tables: what became of each after every step, and what was kept."""

import statistics
from dataclasses import dataclass
from typing import Any

from ..naming import UNDEFINED, format_interval, format_number, full_label, metric_label, unit
from ..table import Cell, Table, escape


RETAIN = "retain/"


@dataclass(frozen=True)
class Point:
    """One step.

    Args:
        step (`int`): 0 is the model before any request.
        request (`str`, *optional*): what was forgotten in it.
        rows (`int`): forgotten so far; with growing sets, in this step.
        now (`dict`, *optional*): the metric of this request's rows.
        before, later (`dict[str, dict]`): of the rows of earlier requests, and of those not asked for yet, by id.
        kept (`dict[str, dict]`): metrics of everything else.
        seconds (`float`, *optional*): of training.
    """

    step: int
    request: str | None
    rows: int
    now: dict | None
    before: dict[str, dict]
    later: dict[str, dict]
    kept: dict[str, dict]
    seconds: float | None


def points_of(found: dict[str, Any]) -> list[Point]:
    """The steps of a `requests.json`."""
    ids = [request["id"] for request in found["requests"]]
    rows = {request["id"]: request["rows"] for request in found["requests"]}
    points = []
    for step in found["steps"]:
        metrics = {name: of.get(found["forget"]) for name, of in step["groups"].items()}
        metrics = {name: metric for name, metric in metrics.items() if metric is not None}
        place = -1 if step["request"] is None else ids.index(step["request"])
        forgotten = ids[: place + 1] if found["start"] == "last" else [step["request"]] if place >= 0 else []
        points.append(Point(
            step["step"], step["request"], sum(rows[name] for name in forgotten), metrics.get(step["request"]),
            {name: metrics[name] for name in ids[:max(place, 0)] if name in metrics},
            {name: metrics[name] for name in ids[place + 1:] if name in metrics},
            step["kept"], step["seconds"],
        ))  # fmt: skip
    return points


def mean_of(metrics: dict[str, dict]) -> float | None:
    """Mean over requests of those values that are defined."""
    values = [metric["value"] for metric in metrics.values() if metric["value"] is not None]
    return statistics.fmean(values) if values else None


def worst_of(metrics: dict[str, dict]) -> dict | None:
    """Of requests that were forgotten, the one that is known best."""
    known = [metric for metric in metrics.values() if metric["value"] is not None]
    return max(known, key=lambda metric: metric["value"], default=None)


def kept_names(found: dict[str, Any]) -> list[str]:
    """What is shown of the rest: the forget metric on the retain rows, and utility."""
    kept = {name for step in found["steps"] for name in step["kept"]}
    return [name for name in dict.fromkeys((f"{RETAIN}{found['forget']}", found["utility"])) if name in kept]


def steps_table(found: dict[str, Any]) -> Table:
    """A line a step, the retrained model's last."""
    forget, names, chained = found["forget"], kept_names(found), found["start"] == "last"
    share = f", {unit(forget)}" if unit(forget) else ""
    heads = ["step", "forgotten now", "rows", f"{metric_label(forget)} now{share}"]
    heads += [f"earlier requests, mean{share}", f"earlier, best known{share}"] if chained else []
    heads += [f"{full_label(name)}{f', {unit(name)}' if unit(name) else ''}" for name in names] + ["seconds"]
    lines = []
    for point in points_of(found):
        line = [str(point.step), "nothing" if point.request is None else escape(point.request), str(point.rows)]
        line.append(_cell(forget, point.now))
        if chained:
            line += [format_number(forget, mean_of(point.before)), _cell(forget, worst_of(point.before))]
        line += [_cell(name, point.kept.get(name)) for name in names]
        lines.append([*line, UNDEFINED if point.seconds is None else f"{point.seconds:.1f}"])
    if found["retrained"] is not None:
        groups = retrained_groups(found)
        line = ["retrained", "all, by retraining", "", format_number(forget, mean_of(groups))]
        line += [UNDEFINED, _cell(forget, worst_of(groups))] if chained else []
        lines.append([*line, *(_cell(name, found["retrained"]["kept"].get(name)) for name in names), UNDEFINED])
    return Table(heads, lines, numbers=True)


def brief_table(found: dict[str, Any]) -> Table:
    """What a terminal has room for: values without intervals."""
    forget, names = found["forget"], kept_names(found)
    chained = ["earlier"] if found["start"] == "last" else []
    table = Table(["", f"{metric_label(forget)}: now", *chained, *map(full_label, names)], numbers=True)
    for point in points_of(found):
        line = [point.request or "before", format_number(forget, (point.now or {}).get("value"))]
        line += [format_number(forget, mean_of(point.before))] if chained else []
        table.rows.append([*line, *(format_number(name, point.kept.get(name, {}).get("value")) for name in names)])
    if found["retrained"] is not None:
        kept = found["retrained"]["kept"]
        line = ["retrained", format_number(forget, mean_of(retrained_groups(found))), *[UNDEFINED for _ in chained]]
        table.rows.append([*line, *(format_number(name, kept.get(name, {}).get("value")) for name in names)])
    return table


def retrained_groups(found: dict[str, Any]) -> dict[str, dict]:
    """The forget metric of the retrained model on each request's rows."""
    groups = {} if found["retrained"] is None else found["retrained"]["groups"]
    return {name: of[found["forget"]] for name, of in groups.items() if found["forget"] in of}


def rows_table(found: dict[str, Any]) -> Table | None:
    """The forget metric of each request's rows after every step; of forget sets that grow there is no such table."""
    if found["start"] != "last":
        return None
    forget, ids = found["forget"], [request["id"] for request in found["requests"]]
    lines = []
    for step in found["steps"]:
        name = "before" if step["request"] is None else f"after {escape(step['request'])}"
        lines.append([name, *(_cell(forget, step["groups"].get(other, {}).get(forget)) for other in ids)])
    return Table([f"{metric_label(forget)} of", *map(escape, ids)], lines, numbers=True)


def drops(found: dict[str, Any]) -> list[str]:
    """What each step cost of the rest, in words: the last value beside the first step's and the one before any."""
    told = []
    for name in kept_names(found):
        values = [(step["step"], step["kept"].get(name, {}).get("value")) for step in found["steps"]]
        values = [(step, value) for step, value in values if value is not None]
        if len(values) > 1:
            shown = " → ".join(f"{format_number(name, value)} (step {step})" for step, value in values)
            told.append(f"{full_label(name)}: {shown}")
    return told


def _cell(name: str, metric: dict | None) -> Cell:
    value = None if metric is None else metric["value"]
    return Cell(format_number(name, value), format_interval(name, metric))
