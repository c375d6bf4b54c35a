# SPDX-License-Identifier: Apache-2.0
"""The curve of requests: forgetting and what is kept, over how much was forgotten."""

from typing import TYPE_CHECKING, Any

from ..drawing import new_figure, note
from ..naming import full_label, is_percent, metric_label, scale, unit
from ..style import METHODS, MUTED, PAGE, RETRAINED, Ink
from .table import Point, kept_names, mean_of, points_of, retrained_groups, worst_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WORDS = {
    "last": ("Requests served one after another", "requests so far"),
    "original": ("Forget sets that grow", "rows to forget"),
}


def curve_figure(found: dict[str, Any]) -> "Figure | None":
    """Two panels over requests (or over the size of the forget set): what is forgotten, and what is kept; `None` for
    fewer than two steps."""
    points = points_of(found)
    if len(points) < 2 or found["forget"] is None:
        return None
    title, along = WORDS[found["start"]]
    names = kept_names(found)
    figure = new_figure((4.2 * (1 + len(names)) + 0.4, 3.9), title=f"{title}: {found['title']}")
    xs = [point.step if found["start"] == "last" else point.rows for point in points]
    panels = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    _forgetting(panels[0], found, points, xs)
    for ax, name in zip(panels[1:], names, strict=True):
        _line(ax, xs, [point.kept.get(name) for point in points], name, METHODS[0], "this model", "s")
        _level(ax, (found["retrained"] or {}).get("kept", {}).get(name, {}).get("value"), name)
        _axis(ax, name)
    for ax, of in zip(panels, ("Forgotten rows", *map(full_label, names)), strict=True):
        ax.set_title(of, loc="left")
        ax.set(xlabel=along, xticks=sorted({*xs}))
        ax.grid(True)
    panels[0].legend(frameon=False, fontsize=8)
    told = "Bars: 95 % intervals over items. Band: all earlier requests, from the least known to the best known."
    note(figure, f"{told} Dotted: the retrained model.")
    return figure


def _forgetting(ax: "Axes", found: dict[str, Any], points: list[Point], xs: list[float]) -> None:
    forget, side = found["forget"], scale(found["forget"])
    _line(ax, xs, [point.now for point in points], forget, METHODS[0], "this request", "s")
    before = [(x, mean_of(p.before), p.before) for x, p in zip(xs, points, strict=True) if p.before]
    before = [(x, mean, worst_of(of), of) for x, mean, of in before if mean is not None]
    if before:
        where, color = [x for x, *_ in before], METHODS[1].light
        ax.plot(where, [mean * side for _, mean, *_ in before], "D-", color=color, label="earlier requests, mean")
        low = [min(m["value"] for m in of.values() if m["value"] is not None) * side for *_, of in before]
        ax.fill_between(where, low, [w["value"] * side for *_, w, _ in before], color=color, alpha=0.15, linewidth=0)
    later = [(x, mean_of(p.later)) for x, p in zip(xs, points, strict=True)]
    later = [(x, mean * side) for x, mean in later if mean is not None]
    if found["start"] == "last" and later:
        ax.plot(*zip(*later, strict=True), "--", color=MUTED.light, label="not asked for yet, mean")
    _level(ax, mean_of(retrained_groups(found)), forget)
    _axis(ax, forget)


def _line(ax: "Axes", xs: list, metrics: list[dict | None], name: str, ink: Ink, label: str, shape: str) -> None:
    """Values with their intervals; steps without one are left out."""
    side = scale(name)
    known = [(x, metric) for x, metric in zip(xs, metrics, strict=True) if metric and metric["value"] is not None]
    sides = [metric["interval"] or [metric["value"]] * 2 for _, metric in known]
    values = [metric["value"] for _, metric in known]
    errors = [
        [max(value - low, 0) * side for value, (low, _) in zip(values, sides, strict=True)],
        [max(high - value, 0) * side for value, (_, high) in zip(values, sides, strict=True)],
    ]
    ax.errorbar(
        [x for x, _ in known], [value * side for value in values], yerr=errors, color=ink.light, marker=shape,
        markeredgecolor=PAGE.light, markersize=6, linewidth=1.6, elinewidth=1.0, label=label,
    )  # fmt: skip


def _level(ax: "Axes", value: float | None, name: str) -> None:
    if value is not None:
        ax.axhline(value * scale(name), color=RETRAINED.light, linestyle=":", linewidth=1.6, zorder=1)


def _axis(ax: "Axes", name: str) -> None:
    ax.set_ylabel(f"{metric_label(name)}{f', {unit(name)}' if unit(name) else ''}")
    if is_percent(name):
        ax.set_ylim(-4, 104)
