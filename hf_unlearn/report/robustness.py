# SPDX-License-Identifier: Apache-2.0
"""How much is left, along what an attack was given: steps, draws, or the layer that was read."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .drawing import chart_name, errors, legend, new_figure, note
from .sections import AUDITS_KEY
from .style import GRID, MUTED, PAGE, Look, looks


if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REMAINING = "/remaining"
PANEL = (4.6, 3.6)
MOST_PANELS = 6
FOOTNOTE = (
    "1: as in the original model; 0: as in one that never knew the rows, both attacked alike. "
    "Grey: up to the bound. Bars: 95% intervals."
)
# Probability and exact answers say the same in another unit.
ALIKE = ("probability", "key_probability", "exact_match")


@dataclass
class Line:
    """What is left in one model.

    Args:
        points (`list[tuple[float, float]]`): x, and `remaining`.
        intervals (`dict[float, list]`): of some x the 95 % interval.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    intervals: dict[float, list[float]] = field(default_factory=dict)


@dataclass
class Panel:
    """One score of one attack, and a line a model."""

    title: str
    xlabel: str
    bound: float
    lines: dict[str, Line] = field(default_factory=dict)


def panels(models: Iterable[Mapping[str, Any]], audit: str) -> list[Panel]:
    """What there is to draw of one kind of audit; of a family of scores that say the same, the first.

    Args:
        models (`list[dict]`): of a report; with `metrics` and `settings` of the audit under `audits`.
        audit (`str`): the kind.
    """
    found: dict[tuple[str, str], Panel] = {}
    for model in models:
        about = (model.get(AUDITS_KEY) or {}).get(audit)
        if about is None:
            continue
        for name, xlabel, line in _lines(about["metrics"]):
            panel = found.setdefault((name, xlabel), Panel(name, xlabel, about["settings"].get("bound", 0.2)))
            panel.lines[model["name"]] = line
    said: set[str] = set()
    kept = []
    for panel in found.values():
        family, _, score = panel.title.rpartition("/")
        if score in ALIKE:
            if family in said:
                continue
            said.add(family)
        kept.append(panel)
    return kept[:MOST_PANELS]


def audits_with_panels(report: Mapping[str, Any]) -> list[str]:
    """Kinds of audits of which a report has something to draw."""
    kinds = dict.fromkeys(kind for model in report["models"] for kind in model.get(AUDITS_KEY) or {})
    return [kind for kind in kinds if panels(report["models"], kind)]


def models_in(report: Mapping[str, Any], audit: str) -> list[str]:
    """The models that the panels of one kind of audit show."""
    return [*dict.fromkeys(name for panel in panels(report["models"], audit) for name in panel.lines)]


def robustness_figure(report: Mapping[str, Any], audit: str, title: str = "") -> Figure | None:
    """All panels of one kind of audit; `None` where there are none."""
    drawn = panels(report["models"], audit)
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure((max(6.4, PANEL[0] * columns), PANEL[1] * rows + 0.9), title=title)
    for i, panel in enumerate(drawn):
        ax = figure.add_subplot(rows, columns, i + 1)
        draw_panel(ax, panel, looks(report))
        ax.set_title(panel.title, loc="left")
    note(figure, FOOTNOTE)
    legend(figure, figure.axes, "upper right")
    return figure


def panel_draws(report: Mapping[str, Any], audit: str) -> dict[str, Callable[[Axes], None]]:
    """What draws each panel on axes, by its title."""
    return {
        panel.title: partial(draw_panel, panel=panel, styles=looks(report))
        for panel in panels(report["models"], audit)
    }


def draw_panel(ax: Axes, panel: Panel, styles: Mapping[str, Look]) -> None:
    """`remaining` (up) along the attack (across), the bound as a grey band, the original model dotted."""
    ax.axhline(1.0, color=MUTED.light, linewidth=1.1, linestyle="dotted")
    for name, line in panel.lines.items():
        look = styles[name]
        ink, shape = look.ink.light, look.marker.matplotlib
        style = {"color": ink, "linestyle": look.line, "linewidth": 1.8, "markeredgecolor": PAGE.light}
        ax.plot(*zip(*line.points, strict=True), marker=shape, markersize=6.5, label=chart_name(name), **style)
        for x, y in line.points:
            if x in line.intervals:
                ax.errorbar(x, y, yerr=errors(y, line.intervals[x]), fmt="none", color=ink, elinewidth=1.2, alpha=0.6)
    xs = sorted({x for line in panel.lines.values() for x, _ in line.points})
    if panel.xlabel != "layer":
        ax.set_xscale("symlog", base=2, linthresh=1)
        ax.set_xticks(xs, [f"{x:g}" for x in xs])
    elif len(xs) <= 12:
        ax.set_xticks(xs)
    ax.set(xlabel=panel.xlabel.capitalize(), ylabel="Remaining")
    low, high = ax.get_ylim()
    low = min(low, -0.1)
    ax.axhspan(low, panel.bound, color=GRID.light, alpha=0.6, linewidth=0, zorder=0)
    ax.set_ylim(low, high)
    ax.grid(True, axis="y")


def _lines(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str, Line]]:
    """Title, label of x, and line of every score that has more than one point."""
    draws: dict[str, Line] = defaultdict(Line)
    for name, metric in metrics.items():
        if not name.endswith(REMAINING):
            continue
        name = name.removesuffix(REMAINING)
        found = re.fullmatch(r"(.+)@(\d+)", name)
        if found:
            k = float(found[2])
            value = metric["value"] if metric["value"] is not None else metric["details"].get("estimate")
            if value is not None:
                draws[found[1]].points.append((k, value))
                if metric["interval"] is not None:
                    draws[found[1]].intervals[k] = metric["interval"]
            continue
        xlabel, line = _curve(metric)
        if len(line.points) > 1:
            yield name, xlabel, line
    for name, line in draws.items():
        if len(line.points) > 1:
            line.points.sort()
            yield f"{name}@k", "draws", line


def _curve(metric: Mapping[str, Any]) -> tuple[str, Line]:
    """One score along steps, where a model's strongest setting at each stands for it, or along layers."""
    points = metric["details"].get("curve", [])
    if points and all(point["step"] is not None for point in points):
        xlabel, place = "steps", lambda point: float(point["step"])
    elif points and all(re.fullmatch(r"layer \d+", point["setting"]) for point in points):
        xlabel, place = "layer", lambda point: float(point["setting"].split()[1])
    else:
        return "", Line()
    at = defaultdict(list)
    for point in points:
        at[place(point)].append(point)
    line = Line()
    for x, here in sorted(at.items()):
        share = here[0].get("remaining") if len(here) == 1 else _share(here)
        if share is not None:
            line.points.append((x, share))
    chosen = [place(point) for point in points if _label(point) == metric["details"].get("setting")]
    if metric["interval"] is not None and chosen:
        line.intervals[chosen[0]] = metric["interval"]
    return xlabel, line


def _share(points: list[Mapping[str, Any]]) -> float | None:
    """`remaining` of several settings: each model by its own strongest one."""
    u, o, r = (
        max((point[who] for point in points if point.get(who) is not None), default=None)
        for who in ("unlearned", "original", "never_knew")
    )
    return None if None in (u, o, r) or o <= r else (u - r) / (o - r)


def _label(point: Mapping[str, Any]) -> str:
    return ", ".join([point["setting"], *([f"step {point['step']}"] if point["step"] is not None else [])])
