# SPDX-License-Identifier: Apache-2.0
"""The two figures of a leaderboard: forgetting against utility, and before against after attack."""

import statistics
from functools import partial
from typing import TYPE_CHECKING

from ..drawing import chart_name, errors, legend, mark, new_figure, note
from ..naming import full_label, is_percent, scale, unit
from ..style import GRID, MUTED, PAGE
from ..sweep.dominance import reach_of
from ..sweep.looks import axis_label, looks_of
from ..sweep.means import Row, cell_of
from .board import Board
from .remaining import REMAINING


if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of what is known of the forget rows, the first moves where exact answers are all gone.
ACROSS = ("forget/probability", "forget/rouge")
LEAST = 1e-7
SMALL, LARGE = 0.55, 1.0


def draws(board: Board) -> "dict[str, Callable[[], Figure | None]]":
    """What draws each figure, by its name."""
    return {"utility": partial(utility_figure, board), "attack": partial(attack_figure, board)}


def utility_figure(board: Board) -> "Figure | None":
    """What is known of the forget rows across, with the retrained models' spread in grey; utility up."""
    table, known = board.table, [name for name in ACROSS if name in board.forget]
    across, up = next(iter(known), table.forget), table.utility
    if across is None or up is None:
        return None
    figure = new_figure((9.6, 6.6), title="Forgetting against utility")
    ax, styles, sides = figure.add_subplot(), looks_of(table), (scale(across), scale(up))
    for row in [*table.of("target", "retrained"), *board.rows]:
        x, y = (cell_of(row.points, name).mean for name in (across, up))
        if None in (x, y):
            continue
        x, reach = max(x, LEAST), [reach_of(row, name) for name in (across, up)]
        _cross(ax, [x, y], reach, sides, styles[row.label].ink.light)
        # Methods do not hide what they are compared with.
        over = {"zorder": 5, "scale": 0.8} if row.kind == "result" else {"zorder": 6}
        mark(ax, x * sides[0], y * sides[1], styles[row.label], label=chart_name(row.label), **over)
    if spread := board.spreads.get(across):
        ends = [max(end, LEAST) * sides[0] for end in (spread.low, spread.high)]
        label = f"{sum(board.retrained.values())} retrained models' spread"
        ax.axvspan(*ends, color=GRID.light, alpha=0.8, linewidth=0, zorder=0, label=label)
    if is_percent(across):
        ax.set_xscale("log")
    words = [f"Known of the forget set: {full_label(across)}", unit(across)]
    ax.set(xlabel=", ".join(filter(None, words)), ylabel=f"Kept: {axis_label(up)}")
    ax.grid(True)
    note(figure, "Bars reach over the 95 % intervals of all runs. Left of the retrained model is not better.")
    legend(figure, [ax], "right upper", columns=1 + len(board.rows) // 24)
    return figure


def attack_figure(board: Board) -> "Figure | None":
    """Of every method what is left before (hollow) and after (filled) the attack that brings most back."""
    found = [(row, _before_after(row)) for row in board.rows]
    found = [(row, pair) for row, pair in found if pair is not None]
    if not found:
        return None
    found.sort(key=lambda one: one[1][1])
    figure = new_figure((8.4, 1.6 + 0.27 * len(found)), title="What is left, before and after attack")
    ax, styles = figure.add_subplot(), looks_of(board.table)
    for place, (row, (before, after)) in enumerate(found):
        look, reach = styles[row.label], reach_of(row, REMAINING)
        if before is not None:
            ax.plot([before, after], [place, place], color=look.ink.light, linewidth=1.4, alpha=0.7)
            mark(ax, before, place, look, scale=SMALL, markerfacecolor=PAGE.light, markeredgecolor=look.ink.light)
        bar = {"fmt": "none", "color": look.ink.light, "elinewidth": 4, "alpha": 0.25}
        ax.errorbar(after, place, xerr=errors(after, reach), **bar)
        mark(ax, after, place, look, scale=LARGE * 0.7)
    ax.axvline(0, color=MUTED.light, linewidth=1.1, linestyle="dotted")
    ax.axvline(1, color=MUTED.light, linewidth=1.1, linestyle="dotted")
    ax.set_yticks(range(len(found)), [chart_name(row.name) for row, _ in found])
    ax.set(xlabel="Remaining: 0 as in a model that never knew, 1 as in the original")
    ax.set_ylim(-0.6, len(found) - 0.4)
    ax.grid(True, axis="x")
    note(
        figure,
        "Hollow: before; filled: after the attack that brings most back, mean over runs; bars: the 95 % intervals\n"
        f"of all runs. Attacks: {', '.join(board.audits)}.",
    )
    return figure


def _before_after(row: Row) -> tuple[float | None, float] | None:
    """Means over the runs that are resolved; what was left before is not known of every audit."""
    pairs = []
    for point in row.points:
        metrics = point.run["metrics"]
        worst = metrics.get(REMAINING)
        if worst is None or worst["value"] is None:
            continue
        details = worst["details"]
        one = metrics.get(f"{details['audit']}/{details.get('which')}") or {"details": {}}
        before = one["details"].get("remaining_before")
        pairs.append((before, worst["value"]))
    if not pairs:
        return None
    befores, afters = zip(*pairs, strict=True)
    return None if None in befores else statistics.fmean(befores), statistics.fmean(afters)


def _cross(ax: "Axes", center: list[float], reach: list, sides: tuple[float, float], color: str) -> None:
    spans = []
    for value, ends, side in zip(center, reach, sides, strict=True):
        ends = None if ends is None else [max(end, LEAST) * side if side is sides[0] else end * side for end in ends]
        spans.append(errors(value * side, ends))
    ax.errorbar(center[0] * sides[0], center[1] * sides[1], xerr=spans[0], yerr=spans[1], fmt="none", color=color,
                elinewidth=1.0, alpha=0.4)  # fmt: skip
