# SPDX-License-Identifier: Apache-2.0
"""What the charts of a sweep have in common: colours, names, and the line below."""

import textwrap
from typing import TYPE_CHECKING

from ..drawing import note
from ..naming import full_label, unit
from ..style import CIRCLE, LINES, METHODS, RETRAINED, SHAPES, STAR, TARGET, Look
from .means import Row, Table, mean_of


if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONGEST_LABEL = 34


def looks_of(table: Table) -> dict[str, Look]:
    """One look per recipe, whatever its setting; target and retrained have their own."""
    found = {row.label: Look(TARGET, CIRCLE, "solid") for row in table.of("target")}
    found |= {row.label: Look(RETRAINED, STAR, "solid") for row in table.of("retrained")}
    labels = dict.fromkeys(row.label for row in table.of("result", "tuning"))
    for i, label in enumerate(labels):
        found[label] = Look(METHODS[i % len(METHODS)], SHAPES[i % len(SHAPES)], LINES[i % len(LINES)])
    return found


def seed_values(row: Row, metric: str) -> dict[int | None, float]:
    """A row's values by seed, each a mean over targets."""
    found = {}
    for seed in dict.fromkeys(point.run["seed"] for point in row.points):
        own = {(p.run["target"], seed): p.values.get(metric) for p in row.points if p.run["seed"] == seed}
        mean = mean_of(own).mean
        if mean is not None:
            found[seed] = mean
    return found


def row_label(row: Row) -> str:
    """A row's name as a legend has room for it, `$` as a sign and not as a formula."""
    name = row.name if len(row.name) <= LONGEST_LABEL else f"{row.name[: LONGEST_LABEL - 1]}…"
    return name.replace("$", r"\$")


def axis_label(name: str) -> str:
    """`forget: exact match, %`."""
    return ", ".join(part for part in (full_label(name), unit(name)) if part)


def footnote(figure: "Figure", table: Table, text: str) -> None:
    """What the marks are, and the rule that chose what is shown."""
    width = round(figure.get_figwidth() * 15)
    note(figure, textwrap.fill(f"{text} Selection: {table.rule}.", width))
