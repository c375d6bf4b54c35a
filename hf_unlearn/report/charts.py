# SPDX-License-Identifier: Apache-2.0
"""The charts, each drawn on a matplotlib axes from the report alone."""

import math
from typing import TYPE_CHECKING

from .drawing import chart_name, errors, mark
from .findings import P_DIFFERENT
from .labels import place_labels
from .naming import (
    first_of_kind,
    format_number,
    is_p_value,
    is_percent,
    metric_in,
    metric_label,
    scale,
    unit,
    value_of,
)
from .style import IDEAL, MUTED, TEXT, looks
from .verdict import forget_metric, utility_metric


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# The smallest p-value a float64 holds apart from 0; drawn at the edge of the axis.
SMALLEST_P = 1e-300
# Of the rows themselves, and so the same quantity for every method, whatever it minimises.
CURVES = {"forget/loss": "Loss on forget rows, nats a token", "retain/loss": "Loss on retain rows, nats a token"}


def has_scatter(report: dict) -> bool:
    """Whether any model has both a forgetting and a utility value."""
    return bool(_scatter_points(report))


def missing_from_scatter(report: dict) -> list[str]:
    """The models whose place in the scatter is undefined."""
    shown = [point[0]["name"] for point in _scatter_points(report)]
    return [model["name"] for model in report["models"] if model["name"] not in shown]


def draw_scatter(ax: "Axes", report: dict) -> None:
    """What a model still knows of the forget set (across) against its utility (up)."""
    x_name, y_name = forget_metric(report), utility_metric(report)
    styles = looks(report)
    points = _scatter_points(report)
    retrained = next((point for point in points if point[0]["kind"] == "retrained"), None)
    _limits(ax, points, x_name, y_name)
    if retrained:
        _ideal(ax, retrained)
    _paths_from_target(ax, points, styles)
    for model, x, y, x_range, y_range in points:
        look = styles[model["name"]]
        bars = {"color": look.ink.light, "elinewidth": 1.3, "alpha": 0.55, "zorder": 3}
        ax.errorbar([x], [y], xerr=errors(x, x_range), yerr=errors(y, y_range), fmt="none", **bars)
        mark(ax, x, y, look)
    ax.set_xlabel(f"Still known of the forget set: {_axis_label(x_name)}")
    ax.set_ylabel(
        f"Utility: {_axis_label(y_name)}" if y_name == "model_utility" else f"Kept of the rest: {_axis_label(y_name)}"
    )
    ax.grid(True)


def label_scatter(ax: "Axes", report: dict) -> None:
    """Writes the models' names into a scatter; its layout must be final, since names are placed by their extent."""
    styles = looks(report)
    points = _scatter_points(report)
    bars = [((x_range[0], y), (x_range[1], y)) for _, _, y, x_range, _ in points if x_range]
    bars += [((x, y_range[0]), (x, y_range[1])) for _, x, _, _, y_range in points if y_range]
    names = [(chart_name(model["name"]), x, y, styles[model["name"]].ink.light) for model, x, y, _, _ in points]
    place_labels(ax, names, bars)


def curve_points(model: dict, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged quantity; entries without it are left out."""
    curve = (model.get("train") or {}).get("curve") or []
    rows = [(row["step"], row[key]) for row in curve if row.get(key) is not None and row.get("step") is not None]
    return [step for step, _ in rows], [value for _, value in rows]


def curve_keys(report: dict) -> list[str]:
    """The loss curves that at least one model has."""
    return [key for key in CURVES if any(curve_points(model, key)[0] for model in report["models"])]


def draw_curve(ax: "Axes", report: dict, key: str) -> None:
    """One logged loss over the steps, a line a model."""
    styles, everything = looks(report), []
    for model in report["models"]:
        steps, values = curve_points(model, key)
        if not steps:
            continue
        look = styles[model["name"]]
        ax.plot(steps, values, color=look.ink.light, linestyle=look.line, linewidth=1.9, zorder=3)
        mark(ax, steps[-1], values[-1], look, 0.75, markeredgewidth=1.0, zorder=4)
        everything += values
    # A diverging ascent would press every other curve flat.
    typical = sorted(map(abs, everything))[len(everything) // 2]
    if max(map(abs, everything)) > 20 * max(typical, 1e-6):
        ax.set_yscale("symlog", linthresh=max(typical, 1e-6))
    elif min(everything) >= 0:
        ax.set_ylim(bottom=0)
    ax.set_title(CURVES[key], loc="left")
    ax.set_xlabel("step")
    ax.grid(True, axis="y")
    ax.margins(x=0.04)


def draw_metric(ax: "Axes", report: dict, name: str) -> None:
    """One metric: a bar with its 95% interval for each model, the retrained model's value as a line through all."""
    models = [model for model in report["models"] if metric_in(model, name)]
    styles = looks(report)
    rows = range(len(models))
    retrained = value_of(first_of_kind(report, "retrained"), name)
    edge = _metric_axis(ax, models, name)
    if is_p_value(name):
        ax.axvline(P_DIFFERENT, color=MUTED.light, linewidth=1, linestyle="dotted", zorder=1)
    elif retrained is not None:
        ax.axvline(scale(name) * retrained, color=IDEAL.light, linewidth=1.2, linestyle=(0, (4, 2.5)), zorder=2.5)
    for row, model in zip(rows, models, strict=True):
        _metric_row(ax, row, model["metrics"][name], name, styles[model["name"]], edge)
    ax.set_yticks(list(rows), [chart_name(model["name"]) for model in models])
    ax.set_ylim(len(models) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0, colors=TEXT.light)
    ax.grid(True, axis="x")
    ax.spines["left"].set_visible(False)


def _metric_row(ax, row, metric, name, look, edge) -> None:
    value, color = metric["value"], look.ink.light
    if value is not None:
        x = max(value, SMALLEST_P) if is_p_value(name) else scale(name) * value
        low, high = (scale(name) * side for side in metric["interval"]) if metric["interval"] else (x, x)
        if is_p_value(name):
            ax.plot([x], [row], look.marker.matplotlib, color=color, markersize=8, zorder=3)
        else:
            ax.barh([row], [x], height=0.62, color=color, alpha=0.82, linewidth=0, zorder=2)
            bar = {"color": TEXT.light, "elinewidth": 1.2, "capsize": 2.6, "capthick": 1.2, "zorder": 4}
            ax.errorbar([x], [row], xerr=errors(x, (low, high)), fmt="none", **bar)
    beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    ax.annotate(format_number(name, value), (edge, row), color=TEXT.light, **beside)


def _metric_axis(ax, models, name) -> float:
    """Sets the x range; returns its right end, beside which the values are written."""
    values = [model["metrics"][name]["value"] for model in models]
    if is_p_value(name):
        smallest = min([max(value, SMALLEST_P) for value in values if value is not None] + [P_DIFFERENT / 10])
        ax.set_xscale("log")
        ax.set_xlim(10 ** (math.floor(math.log10(smallest)) - 0.4), 2)
        return 2.0
    sides = [side for model in models for side in (model["metrics"][name]["interval"] or [])]
    ends = [end for end in (*values, *sides) if end is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if is_percent(name) or (low >= 0 and 0.4 < high <= 1):
        high = max(high, 1.0)
    high = high if high > low else 1.0
    ax.set_xlim(scale(name) * low, scale(name) * high)
    return scale(name) * high


def _scatter_points(report: dict) -> list[tuple]:
    x_name, y_name = forget_metric(report), utility_metric(report)
    if x_name is None or y_name is None:
        return []
    points = []
    for model in report["models"]:
        if value_of(model, x_name) is None or value_of(model, y_name) is None:
            continue
        sides = []
        for name in (x_name, y_name):
            metric = model["metrics"][name]
            sides.append([scale(name) * side for side in metric["interval"]] if metric["interval"] else None)
        x, y = scale(x_name) * value_of(model, x_name), scale(y_name) * value_of(model, y_name)
        points.append((model, x, y, *sides))
    return points


def _limits(ax, points, x_name, y_name) -> None:
    for name, axis, set_limits in ((x_name, 0, ax.set_xlim), (y_name, 1, ax.set_ylim)):
        ends = [end for point in points for end in (point[1 + axis], *(point[3 + axis] or []))]
        high = max(max(ends) * 1.02, 0.2 * scale(name))
        # Room at the ends: markers and the labels beside them must not be cut.
        set_limits(-0.06 * high, 1.1 * high)


def _ideal(ax, retrained) -> None:
    """Shades where a model is like the retrained one: an ellipse over its intervals, of a visible size at least."""
    from matplotlib.patches import Ellipse

    _, x, y, x_range, y_range = retrained
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for growth, alpha in ((1.0, 0.10), (1.25, 0.07), (1.5, 0.05), (1.75, 0.04)):
        width = growth * max(2 * _reach(x, x_range), 0.16 * (right - left))
        height = growth * max(2 * _reach(y, y_range), 0.16 * (top - bottom))
        ax.add_patch(Ellipse((x, y), width, height, facecolor=IDEAL.light, alpha=alpha, linewidth=0, zorder=0.5))


def _paths_from_target(ax, points, styles) -> None:
    """A faint line from the target to each unlearned model: where the method took it."""
    target = next((point for point in points if point[0]["kind"] == "target"), None)
    if target is None:
        return
    for model, x, y, _, _ in points:
        if model["kind"] == "unlearned":
            faint = {"linewidth": 1.2, "alpha": 0.3, "zorder": 2}
            ax.plot([target[1], x], [target[2], y], color=styles[model["name"]].ink.light, **faint)


def _reach(center: float, sides) -> float:
    return max(abs(side - center) for side in sides) if sides else 0.0


def _axis_label(name: str) -> str:
    label = metric_label(name)
    return f"{label} ({unit(name)})" if unit(name) else label
