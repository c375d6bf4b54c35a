# SPDX-License-Identifier: Apache-2.0
"""Charts of a sweep over one quantity: a field that was varied, or the rounds of a method that has such."""

import json
from typing import TYPE_CHECKING, Any

from ..drawing import chart_name, new_figure
from ..naming import is_percent, scale
from ..style import METHODS, PAGE, SHAPES
from .looks import axis_label, footnote
from .means import Row, Table, cell_of, mean_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_FIELDS = 4
MOST_TICKS = 7


def ablation_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """A row of panels a varied number, a line for each recipe and setting of the other fields."""
    lines = {field: found for field in sweep["swept"] if (found := ablation_lines(table, field))}
    names = [name for name in dict.fromkeys((table.forget, table.utility)) if name]
    fields = list(lines)[:MOST_FIELDS]
    if not fields or not names:
        return None
    figure = new_figure((4.4 * len(names) + 0.4, 3.1 * len(fields) + 0.8), title="What each setting does")
    for i, field in enumerate(fields):
        for j, name in enumerate(names):
            ax = figure.add_subplot(len(fields), len(names), i * len(names) + j + 1)
            for number, (label, rows) in enumerate(lines[field].items()):
                points = [(_value(row, field), cell_of(row.points, name)) for row in rows]
                _draw_line(ax, points, number, name, label)
            _axis(ax, [_value(row, field) for rows in lines[field].values() for row in rows])
            ax.set(xlabel=field, ylabel=axis_label(name))
            if j == 0:
                ax.legend(frameon=False, fontsize=8)
    footnote(figure, table, "Bars: standard deviation over seeds.")
    return figure


def ablation_lines(table: Table, field: str) -> dict[str, list[Row]]:
    """Rows that differ in this field alone, ordered by it, by the name of their line; those of two values at least."""
    groups: dict[tuple, list[Row]] = {}
    for row in table.of("result"):
        run = row.points[0].run
        value = run["fields"].get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            others = {key: other for key, other in run["setting"].items() if key != field}
            groups.setdefault((row.label, json.dumps(others, sort_keys=True), row.step), []).append(row)
    lines = {}
    for (label, others, step), rows in groups.items():
        ordered = sorted(rows, key=lambda row: _value(row, field))
        if len({_value(row, field) for row in rows}) > 1:
            rest = " ".join(f"{key}={value}" for key, value in json.loads(others).items())
            name = " ".join(part for part in (label, rest, "" if step is None else f"step {step}") if part)
            lines[name] = ordered
    return lines


def _value(row: Row, field: str) -> float:
    return row.points[0].run["fields"][field]


def rounds_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """Metrics in each round against its threshold, of methods that unlearn in rounds."""
    lines = round_lines(sweep)
    names = [name for name in dict.fromkeys((table.forget, table.utility, "forget/loss", "retain/loss")) if name]
    names = [n for n in names if any(n in values for line in lines.values() for values in line.values())][:2]
    if not names:
        return None
    figure = new_figure((4.4 * len(names) + 0.4, 4.0), title="Round by round")
    for j, name in enumerate(names):
        ax = figure.add_subplot(1, len(names), j + 1)
        for number, (label, rounds) in enumerate(lines.items()):
            points = [(threshold, mean_of(values[name])) for threshold, values in rounds.items() if name in values]
            _draw_line(ax, points, number, name, label)
        ax.set(xlabel=f"{_threshold_kind(sweep)} (rounds go to the right)", ylabel=axis_label(name))
        if not ax.xaxis_inverted():
            ax.invert_xaxis()
        _end_of_percent(ax, name)
        ax.grid(True)
    figure.axes[0].legend(frameon=False, fontsize=8)
    footnote(
        figure,
        table,
        "The last evaluation in each round's unlearning stage, mean over targets and seeds; bars: standard deviation "
        "over seeds.",
    )
    return figure


def _threshold_kind(sweep: dict[str, Any]) -> str:
    """What the thresholds of the runs are."""
    modes = {run["fields"].get("threshold_mode", "cosine") for run in sweep["runs"] if run["rounds"]}
    return ", ".join(["Threshold", *modes]) if len(modes) == 1 else "Threshold"


def _end_of_percent(ax: "Axes", name: str) -> None:
    """No tick, and no bar, beyond 0 and 100 %; the room above is the markers'."""
    if not is_percent(name):
        return
    low, high = ax.get_ylim()
    low, high = max(low, -4.0), min(high, 104.0)
    ax.set_yticks([tick for tick in ax.get_yticks() if max(low, 0) <= tick <= min(high, 100)])
    ax.set_ylim(low, high)


def round_lines(sweep: dict[str, Any]) -> dict[str, dict[float, dict[str, dict[tuple, float]]]]:
    """Of every recipe and setting: threshold to metric to values by target and seed, the tuning seed left out."""
    lines: dict[str, dict] = {}
    for run in sweep["runs"]:
        if run["tuning"]:
            continue
        line = " ".join(part for part in (run["label"], run["variant"]) if part)
        for one in run["rounds"]:
            known = lines.setdefault(line, {}).setdefault(one["threshold"], {})
            for name, value in one["values"].items():
                known.setdefault(name, {})[run["target"], run["seed"]] = value
    return lines


def _draw_line(ax: "Axes", points: list[tuple], number: int, name: str, label: str) -> None:
    points = [(x, cell) for x, cell in points if cell.mean is not None]
    if not points:
        return
    side, ink = scale(name), METHODS[number % len(METHODS)].light
    xs, ys = [x for x, _ in points], [cell.mean * side for _, cell in points]
    errors = [(cell.sd or 0) * side for _, cell in points]
    marker = {"marker": SHAPES[number % len(SHAPES)].matplotlib, "markersize": 6, "markeredgecolor": PAGE.light}
    ax.errorbar(xs, ys, yerr=errors, color=ink, linewidth=1.6, elinewidth=1.1, label=chart_name(label), **marker)


def _axis(ax: "Axes", values: list[float]) -> None:
    """Ticks where there are values; powers of ten want a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    if min(values) > 0 and max(values) / min(values) >= 50:
        ax.set_xscale("log")
    shown = sorted({*values})
    if len(shown) <= MOST_TICKS:
        ax.set_xticks(shown, [f"{value:g}" for value in shown])
        ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(True)
