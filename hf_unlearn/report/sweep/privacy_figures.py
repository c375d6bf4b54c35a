# SPDX-License-Identifier: Apache-2.0
"""Charts of what membership-inference attacks found in the runs of a sweep."""

import math
import statistics
from typing import TYPE_CHECKING, Any

from ..drawing import bar_places, errors, legend, new_figure, rate_axes, unresolved_group
from ..privacy.figures import MOST_PANELS, left_out, roc_figure, scores_figure
from ..privacy.view import fpr_name
from ..style import PAGE, TARGET, Look
from .looks import footnote, looks_of, row_label, seed_values
from .means import PRIVACY, Row, Table, cell_of
from .rules import Point


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WORST = "worst"


def privacy_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """One panel an attack, and one for the best of all: TPR at every rate, a bar a method, with what is uncertain."""
    audited = [run["privacy"] for run in sweep["runs"] if run["privacy"]]
    rows = [row for row in table.of("target", "retrained", "result") if any(map(audit_of, row.points))]
    if not audited or not rows:
        return None
    attacks = [WORST, *dict.fromkeys(attack for found in audited for attack in found["settings"]["attacks"])]
    fprs = sorted({fpr for found in audited for fpr in found["settings"]["fprs"]})
    columns = min(2, len(attacks))
    lines = math.ceil(len(attacks) / columns)
    figure = new_figure((5.4 * columns, 3.1 * lines + 1.0), title="Forget rows that attacks find")
    styles = looks_of(table)
    for i, attack in enumerate(attacks):
        _draw_attack(figure.add_subplot(lines, columns, i + 1), rows, attack, fprs, styles)
    footnote(figure, table, "Bars: 95 % interval over rows, a mean over runs. Dots: seeds. Dotted: chance.")
    legend(figure, figure.axes)
    return figure


def _draw_attack(ax: "Axes", rows: list[Row], attack: str, fprs: list[float], styles: dict) -> None:
    seen: dict[str, str] = {}
    for group, fpr in enumerate(fprs):
        metric = f"{attack}/tpr@{fpr_name(fpr)}"
        places, width = bar_places(group, len(rows))
        cells = [cell_of(row.points, PRIVACY + metric) for row in rows]
        if all(cell.mean is None for cell in cells):
            unresolved_group(ax, group)
            continue
        for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
            if cell.mean is None:
                continue
            hatch = None if seen.setdefault(row.label, row.name) == row.name else "///"
            _draw_bar(ax, places[i], width * 0.92, row, metric, styles[row.label], hatch)
        chance = _chance(rows, metric)
        if chance is not None:
            ax.plot([group - 0.47, group + 0.47], [chance] * 2, color="black", linewidth=1.1, linestyle="dotted")
    rate_axes(ax, [fpr_name(fpr) for fpr in fprs], "best of all, any tail" if attack == WORST else attack)


def _draw_bar(ax: "Axes", x: float, width: float, row: Row, metric: str, look: Look, hatch: str | None) -> None:
    mean = cell_of(row.points, PRIVACY + metric).mean
    bar = {"color": look.ink.light, "hatch": hatch, "edgecolor": PAGE.light, "linewidth": 0}
    ax.bar(x, mean, width, label=row_label(row), **bar)
    low, high = interval_of(row, metric)
    if low is not None:
        ax.errorbar(x, mean, yerr=errors(mean, (low, high)), fmt="none", color=TARGET.light, elinewidth=1)
    seeds = list(seed_values(row, PRIVACY + metric).values())
    if len(seeds) > 1:
        dot = {"markersize": 3, "color": TARGET.light, "markeredgecolor": PAGE.light, "linewidth": 0}
        ax.plot([x] * len(seeds), seeds, "o", **dot)


def interval_of(row: Row, metric: str) -> tuple[float | None, float | None]:
    """The mean of the runs' intervals over rows: the rows are the same in all, so more seeds do not narrow them."""
    found = [m["interval"] for p in row.points if (m := _metric(p, metric)) and m["interval"] is not None]
    return tuple(map(statistics.fmean, zip(*found, strict=True))) if found else (None, None)


def roc_of_sweep(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """ROCs on logarithmic axes, a panel a method: of one run each, its first seed and target."""
    return _drawn(roc_figure, table)


def distribution_figure(sweep: dict[str, Any], table: Table) -> "Figure | None":
    """Scores of forget rows and non-members, a panel a method: of one run each, its first seed and target."""
    return _drawn(scores_figure, table)


def _drawn(draw, table: Table) -> "Figure | None":
    models = []
    for row in table.of("target", "retrained", "result"):
        found = next(filter(None, map(audit_of, row.points)), None)
        if found is not None:
            models.append({**found, "name": row_label(row), "kind": row_label(row)})
    if not any(audit_of(point) for row in table.of("result") for point in row.points):
        return None
    figure = draw({"models": models[:MOST_PANELS]})
    rest = left_out(models[MOST_PANELS:], "table.csv")
    footnote(figure, table, f"One run each, the first seed and target.{rest}")
    return figure


def _chance(rows: list[Row], metric: str) -> float | None:
    found = (_metric(point, metric) for row in rows for point in row.points)
    return next((m["details"]["chance"] for m in found if m and "chance" in m["details"]), None)


def audit_of(point: Point) -> dict | None:
    """What attacks found; only the end of a run was attacked."""
    return point.run["privacy"] if point.step is None else None


def _metric(point: Point, metric: str) -> dict | None:
    return (audit_of(point) or {"metrics": {}})["metrics"].get(metric)
