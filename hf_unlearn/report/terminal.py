# SPDX-License-Identifier: Apache-2.0
"""The report as a table on the terminal."""

from typing import TYPE_CHECKING

from .privacy_table import TITLE, attacked_models, privacy_cell, rate_heading, rates_of
from .style import looks
from .table import Table
from .verdict import verdicts
from .view import Column, cell, columns


if TYPE_CHECKING:
    import rich.table
    from rich.console import Console


# Left out one by one, in this order, where the terminal is too narrow for all.
LEAVES_FIRST = ("forget/rouge", "retain/probability", "forget/probability", "forget_paraphrased/exact_match")
LONGEST_NAME = 26
TONE_STYLES = {"good": "green", "mixed": "yellow", "bad": "red", "unknown": "dim"}


def print_report(report: dict, console: "Console | None" = None) -> None:
    """Prints one row a model with the key metrics and their 95% intervals, what attacks found, and a line of words on
    each result.

    Args:
        report (`dict`): the content of a `report.json`.
        console (`rich.console.Console`, *optional*): where to print; by default the standard output.

    Raises:
        `ValueError`: if the report does not fit its schema.
    """
    from rich.console import Console

    from .schema import validate_report

    validate_report(report)
    console = console or Console()
    headings, left_out = columns(report, key_only=True), []
    table = _table(report, headings)
    for name in LEAVES_FIRST:
        if _width(table) <= console.width:
            break
        left_out += [heading.full_label for heading in headings if heading.name == name]
        headings = [heading for heading in headings if heading.name != name]
        table = _table(report, headings)
    console.print(table)
    hint = "95% intervals below. ↑ higher, ↓ lower, ≈ closer to retrained is better. – is undefined."
    if left_out:
        hint += f" Not shown for want of room: {', '.join(left_out)}."
    console.print(hint, style="dim", highlight=False)
    if attacked_models(report):
        console.print(_privacy_table(report))
    for verdict in verdicts(report):
        console.print(_verdict_line(verdict))


def _width(table: "rich.table.Table") -> int:
    """What the table takes up when nothing is cut."""
    from rich.console import Console

    return Console(width=10_000).measure(table).maximum


def _table(report: dict, headings: list[Column]) -> "rich.table.Table":
    heads = []
    for heading in headings:
        lines = [heading.set.replace(", ", "\n"), heading.label.replace(" ", "\n")]
        heads.append("\n".join(line for line in (*lines, f"{heading.unit} {heading.arrow}".strip()) if line))
    rows = [[_name(report, model), *(cell(model, heading.name) for heading in headings)] for model in report["models"]]
    return _of_models(report, Table(["model", *heads], rows, report["title"], numbers=True), no_wrap=True)


def _privacy_table(report: dict) -> "rich.table.Table":
    from rich.text import Text

    rates = rates_of(report)
    rows = [[_name(report, model), *(privacy_cell(model, fpr) for fpr in rates)] for model in attacked_models(report)]
    table = _of_models(report, Table(["model", *map(rate_heading, rates)], rows, TITLE, numbers=True))
    table.caption, table.caption_justify = Text("TPR with 95% interval, of the best attack", style="dim"), "left"
    return table


def _of_models(report: dict, table: Table, **columns) -> "rich.table.Table":
    shown = table.terminal(**columns)
    longest = max(len(model["name"]) + 2 for model in report["models"])
    shown.columns[0].min_width = min(longest, LONGEST_NAME)
    return shown


def _name(report: dict, model: dict):
    from rich.text import Text

    look = looks(report)[model["name"]]
    name = Text(f"{look.marker.glyph} ", style=look.ink.dark)
    return name.append(model["name"], style="bold" if model["kind"] == "unlearned" else "")


def _verdict_line(verdict):
    from rich.text import Text

    line = Text.assemble((f"{verdict.sign} ", TONE_STYLES[verdict.tone]), (verdict.model, "bold"), ": ")
    line.append(f"{verdict.headline}. ")
    parts = [f"{finding.label} {finding.metric} {finding.value}" for finding in (verdict.forgot, verdict.kept)]
    line.append("; ".join(parts), style="dim")
    return line
