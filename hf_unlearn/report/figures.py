# SPDX-License-Identifier: Apache-2.0
"""The charts as files: PNG for markdown and the README, SVG that follows the page's colours for the HTML page."""

import html
import io
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .charts import curve_keys, draw_curve, draw_metric, draw_scatter, has_scatter, label_scatter, missing_from_scatter
from .drawing import PAGE_FONTS, chart_name, new_figure, note, save_figures, styled
from .naming import (
    ARROWS,
    DIRECTION_WORDS,
    direction_of,
    full_label,
    is_p_value,
    key_metric_names,
    metric_names,
    unit,
)
from .robustness import audits_with_panels, panel_draws, robustness_figure
from .style import INKS, PAGE, looks


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Inches; at 96 pixels an inch the page shows them at their natural size.
SCATTER_SIZE, SCATTER_SIZE_NARROW, CURVE_SIZE = (7.4, 5.0), (3.75, 4.1), (5.4, 3.3)
PANEL_WIDTH, PANEL_ROW, PAGE_PAD = 4.3, 0.3, 0.04


def save_plots(report: dict, folder: Path) -> dict[str, Path]:
    """Draws the PNGs.

    Args:
        report (`dict`): a valid report.
        folder (`Path`): where they go; made if absent.

    Returns:
        `dict[str, Path]`: `forget_vs_utility`, `loss_curves`, `metrics` and `robustness_<audit>`, those for which the
        report has numbers.
    """
    draws = {
        "forget_vs_utility": (has_scatter, _scatter_figure),
        "loss_curves": (curve_keys, _curves_figure),
        "metrics": (key_metric_names, _metrics_figure),
    }
    plots = {
        name: lambda known=known, draw=draw: draw(report) if known(report) else None
        for name, (known, draw) in draws.items()
    }
    plots |= {f"robustness_{kind}": partial(robustness_figure, report, kind) for kind in audits_with_panels(report)}
    return save_figures(plots, folder)


def page_charts(report: dict) -> dict[str, dict[str, str]]:
    """The same charts as inline SVG, a panel each, so that the page can lay them out at any width.

    Returns:
        `dict`: `scatter` (`wide` and `narrow`), `curves` (by log key), `metrics` (by metric name) and `audits` (by
        kind, then title).
    """
    charts = {"scatter": {}, "curves": {}, "metrics": {}, "audits": {}}
    with styled(PAGE_FONTS):
        if has_scatter(report):
            label = "Scatter: what each model still knows of the forget set against its utility"
            for width, size in (("wide", SCATTER_SIZE), ("narrow", SCATTER_SIZE_NARROW)):
                charts["scatter"][width] = _panel(
                    size, label, f"scatter-{width}", partial(_named_scatter, report=report)
                )
        for key in curve_keys(report):
            draw = partial(draw_curve, report=report, key=key)
            charts["curves"][key] = _panel(CURVE_SIZE, f"Line chart: {key} by step", f"curve-{_slug(key)}", draw)
        for name in metric_names(report):
            size = (PANEL_WIDTH, _panel_height(report, name))
            label = f"Bar chart: {full_label(name)} of each model with its 95% interval"
            charts["metrics"][name] = _panel(
                size, label, f"metric-{_slug(name)}", partial(draw_metric, report=report, name=name)
            )
        for kind in audits_with_panels(report):
            charts["audits"][kind] = {
                title: _panel(
                    CURVE_SIZE, f"Line chart: what is left, {title}", f"audit-{_slug(f'{kind}-{title}')}", draw
                )
                for title, draw in panel_draws(report, kind).items()
            }
    return charts


def _named_scatter(ax: "Axes", report: dict) -> None:
    draw_scatter(ax, report)
    ax.figure.draw_without_rendering()
    label_scatter(ax, report)


def _scatter_figure(report: dict) -> "Figure":
    figure = new_figure((8.0, 5.6), title="Forgetting against utility", title_size=14.5)
    ax = figure.add_subplot()
    note(figure, _scatter_footnote(report), 9)
    _named_scatter(ax, report)
    _halos(ax)
    return figure


def _scatter_footnote(report: dict) -> str:
    parts = ["Bars: 95% intervals. Lines lead from the target to each method's result."]
    if any(model["kind"] == "retrained" for model in report["models"]):
        parts.append("Shaded: like the model retrained without the forget set, the aim.")
    missing = missing_from_scatter(report)
    if missing:
        parts.append(f"\nUndefined, so not shown: {', '.join(map(chart_name, missing))}.")
    return " ".join(parts)


def _curves_figure(report: dict) -> "Figure":
    from matplotlib.lines import Line2D

    keys = curve_keys(report)
    figure = new_figure((4.6 * len(keys) + 0.4, 3.9))
    for index, key in enumerate(keys):
        draw_curve(figure.add_subplot(1, len(keys), index + 1), report, key)
    styles = looks(report)
    shown = [model["name"] for model in report["models"] if (model.get("train") or {}).get("curve")]
    handles = []
    for name in shown:
        look = styles[name]
        line = {"color": look.ink.light, "linestyle": look.line, "linewidth": 1.9}
        marker = {"marker": look.marker.matplotlib, "markersize": 7, "markeredgecolor": PAGE.light}
        handles.append(Line2D([], [], label=chart_name(name), **line, **marker))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5), frameon=False)
    return figure


def _metrics_figure(report: dict) -> "Figure":
    names = key_metric_names(report)
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure((PANEL_WIDTH * columns, rows * (_panel_height(report, names[0]) + 0.35)))
    for index, name in enumerate(names):
        ax = figure.add_subplot(rows, columns, index + 1)
        draw_metric(ax, report, name)
        ax.set_title(chart_title(report, name), loc="left")
    note(figure, _metrics_footnote(report, names), 9.5)
    return figure


def _metrics_footnote(report: dict, names: list[str]) -> str:
    directions = dict.fromkeys(direction_of(report, name) for name in names)
    parts = [f"{DIRECTION_WORDS[direction]} is better" for direction in directions if direction != "none"]
    if any(model["kind"] == "retrained" for model in report["models"]):
        parts.append("dashed: the retrained model")
    if any(map(is_p_value, names)):
        parts.append("dotted: p = 0.05")
    return "   ".join(parts)


def chart_title(report: dict, name: str) -> str:
    """`forget: exact match, % ↓`."""
    heading = ", ".join(part for part in (full_label(name), unit(name)) if part)
    return f"{heading} {ARROWS[direction_of(report, name)]}".strip()


def _panel_height(report: dict, name: str) -> float:
    return 0.5 + PANEL_ROW * sum(name in model["metrics"] for model in report["models"])


def _halos(ax: "Axes") -> None:
    from matplotlib.patheffects import withStroke

    for text in ax.texts:
        text.set_path_effects([withStroke(linewidth=2.6, foreground=PAGE.light)])


def _panel(size: tuple[float, float], label: str, prefix: str, draw: Callable[["Axes"], None]) -> str:
    figure = new_figure(size, PAGE_PAD)
    ax = figure.add_subplot()
    draw(ax)
    # The page has its own headings.
    ax.set_title("", loc="left")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), label, prefix)


def _inline(svg: str, label: str, prefix: str) -> str:
    """An SVG file as an element of the page: no header, ids of its own, colours by the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    body = svg[svg.index(">") + 1 :]
    view_box = re.search(r'viewBox="([^"]+)"', svg).group(1)
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#([\w-]+)', rf"\1#{prefix}-\2", body)
    for ink in INKS:
        body = body.replace(ink.light, f"var({ink.variable})")
    width = float(view_box.split()[2]) * 96 / 72
    about = f'role="img" aria-label="{html.escape(label)}"'
    return f'<svg class="chart" {about} viewBox="{view_box}" style="max-width: {width:.0f}px">{body.strip()}'


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
