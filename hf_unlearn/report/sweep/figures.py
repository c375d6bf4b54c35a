# SPDX-License-Identifier: Apache-2.0
"""Charts of a sweep: what was forgotten against what was kept, per target; and those of the other files."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing import bar_places, chart_name, legend, mark, new_figure, save_figures
from ..naming import metric_label, scale, unit
from ..style import MUTED, PAGE, TARGET, Look
from .looks import axis_label, footnote, looks_of, row_label, seed_values
from .means import Cell, Row, Table, mean_of, targets_of
from .rules import beats
from .tables import target_cell


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = ("png", "pdf")
# Bars side by side become too thin to tell apart.
MOST_TARGETS = 24


def save_sweep_plots(sweep: dict[str, Any], table: Table, folder: Path, formats=FORMATS) -> dict[str, Path]:
    """Draws all charts for which there are numbers, each as png and pdf.

    Args:
        sweep (`dict`): the content of `sweep.json`.
        table ([`Table`]): its numbers.
        folder (`Path`): where they go; made if absent.
        formats (`tuple[str]`): file endings that matplotlib knows.

    Returns:
        `dict[str, Path]`: the files of the first format by name: `utility`, `targets`, `ablation`, `rounds`,
        `privacy`, `privacy_roc`, `distribution`.
    """
    from .curves import ablation_figure, rounds_figure
    from .privacy_figures import distribution_figure, privacy_figure, roc_of_sweep

    draws = {
        "utility": utility_figure,
        "targets": targets_figure,
        "ablation": ablation_figure,
        "rounds": rounds_figure,
        "privacy": privacy_figure,
        "privacy_roc": roc_of_sweep,
        "distribution": distribution_figure,
    }
    return save_figures({name: partial(draw, sweep, table) for name, draw in draws.items()}, folder, formats)


def utility_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """Forget metric across, utility up: a large marker the mean, small ones its seeds, the front of all means."""
    if table.forget is None or table.utility is None:
        return None
    rows = [(row, *(_cell(row, name) for name in (table.forget, table.utility))) for row in table.rows]
    rows = [(row, x, y) for row, x, y in rows if None not in (x.mean, y.mean) and row.kind != "tuning"]
    results = [(row, x, y) for row, x, y in rows if row.kind == "result"]
    if not results:
        return None
    figure = new_figure((8.0, 5.4), title="Forgetting against utility")
    ax, styles, sides = figure.add_subplot(), looks_of(table), (scale(table.forget), scale(table.utility))
    labelled: set[str] = set()
    for row, x, y in rows:
        _draw_seeds(ax, row, table, styles[row.label], sides)
        label = None if row.label in labelled else chart_name(row.label)
        labelled.add(row.label)
        _draw_mean(ax, x, y, styles[row.label], sides, label)
    front = sorted((x.mean, y.mean) for _, x, y in results)
    front = [point for point in front if not any(beats(other, point) for other in front)]
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        values = [[value * side for value in part] for part, side in zip((xs, ys), sides, strict=True)]
        ax.step(*values, where="post", color=MUTED.light, linewidth=1.2, linestyle="dotted", label="Pareto front")
    known = [f"Still known of the forget set: {metric_label(table.forget)}", unit(table.forget)]
    ax.set(xlabel=", ".join(filter(None, known)), ylabel=f"Kept: {axis_label(table.utility)}")
    ax.grid(True)
    footnote(figure, table, "Small: seeds; bars: standard deviation over seeds.")
    legend(figure, [ax])
    return figure


def targets_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """Bars per target, one panel for the forget metric and one for utility."""
    rows, targets = table.of("target", "retrained", "result"), targets_of(table.rows)
    names = [name for name in dict.fromkeys((table.forget, table.utility)) if name]
    if len(targets) < 2 or not names or not table.of("result"):
        return None
    shown = targets[:MOST_TARGETS]
    title = f"Per target{'' if len(shown) == len(targets) else f', the first {len(shown)} of {len(targets)}'}"
    size = (max(6.4, 1.6 + 0.28 * len(shown) * len(rows)), 3.0 * len(names) + 0.9)
    figure = new_figure(size, title=title)
    styles = looks_of(table)
    for i, name in enumerate(names):
        ax = figure.add_subplot(len(names), 1, i + 1)
        _draw_bars(ax, rows, shown, name, styles)
    footnote(figure, table, "Bars: standard deviation over seeds; of a single run its 95 % interval over items.")
    legend(figure, figure.axes[:1])
    return figure


def _draw_bars(ax: "Axes", rows: list[Row], targets: list[str], name: str, styles: dict[str, Look]) -> None:
    from matplotlib.patheffects import withStroke

    (places, width), side = bar_places(0, len(rows)), scale(name)
    # To be seen within a bar of the same colour too.
    around, line = withStroke(linewidth=2.6, foreground=PAGE.light), {"fmt": "none", "zorder": 4}
    line |= {"color": TARGET.light, "elinewidth": 1.2}
    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        hatch = None if seen.setdefault(row.label, i) == i else "///"
        cells = [target_cell(row, target, name) for target in targets]
        known = [(place, cell) for place, cell in enumerate(cells) if cell.mean is not None]
        if not known:
            continue
        xs = [group + places[i] for group, _ in known]
        bar = {"color": styles[row.label].ink.light, "hatch": hatch, "edgecolor": PAGE.light, "linewidth": 0}
        ax.bar(xs, [cell.mean * side for _, cell in known], width * 0.92, label=row_label(row), **bar)
        for x, cell in zip(xs, (cell for _, cell in known), strict=True):
            if (spread := _spread(cell)) is not None:
                ends = [[end * side] for end in spread]
                ax.errorbar(x, cell.mean * side, yerr=ends, path_effects=[around], **line)
    ax.set_xticks(range(len(targets)), [chart_name(target) for target in targets], rotation=20, ha="right")
    ax.set_ylabel(axis_label(name))
    ax.grid(True, axis="y")


def _spread(cell: Cell) -> tuple[float, float] | None:
    """How far a bar reaches below and above: the sd over seeds, or a single run's interval."""
    if cell.sd is not None:
        return cell.sd, cell.sd
    if cell.n == 1 and cell.low is not None:
        return max(cell.mean - cell.low, 0.0), max(cell.high - cell.mean, 0.0)
    return None


def _draw_seeds(ax: "Axes", row: Row, table: Table, look: Look, sides: tuple[float, float]) -> None:
    xs, ys = seed_values(row, table.forget), seed_values(row, table.utility)
    seeds = [seed for seed in xs if seed in ys]
    if len(seeds) > 1:
        points = [xs[seed] * sides[0] for seed in seeds], [ys[seed] * sides[1] for seed in seeds]
        ax.plot(*points, look.marker.matplotlib, color=look.ink.light, markersize=4, alpha=0.5, linewidth=0, zorder=3)


def _draw_mean(ax: "Axes", x: Cell, y: Cell, look: Look, sides: tuple[float, float], label: str | None) -> None:
    point = x.mean * sides[0], y.mean * sides[1]
    errors = [None if cell.sd is None else cell.sd * side for cell, side in zip((x, y), sides, strict=True)]
    ax.errorbar(*point, xerr=errors[0], yerr=errors[1], fmt="none", color=look.ink.light, elinewidth=1.2, alpha=0.6)
    mark(ax, *point, look, label=label)


def _cell(row: Row, name: str) -> Cell:
    """A metric of a row, also one that the table does not show."""
    known = row.cells.get(name)
    return known or mean_of({(p.run["target"], p.run["seed"]): p.values.get(name) for p in row.points})
