# SPDX-License-Identifier: Apache-2.0
"""The report as a table on the terminal."""

from typing import TYPE_CHECKING

from .table import Table
from .verdict import verdicts
from .view import columns, key_table, section_tables


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
    from rich.text import Text

    from .schema import validate_report

    validate_report(report)
    console = console or Console()
    headings, left_out = columns(report, key_only=True), []
    table = _shown(report, key_table(report, headings), no_wrap=True)
    for name in LEAVES_FIRST:
        if _width(table) <= console.width:
            break
        left_out += [heading.full_label for heading in headings if heading.name == name]
        headings = [heading for heading in headings if heading.name != name]
        table = _shown(report, key_table(report, headings), no_wrap=True)
    console.print(table)
    hint = "95% intervals below. ↑ higher, ↓ lower, ≈ closer to retrained is better. – is undefined."
    if left_out:
        hint += f" Not shown for want of room: {', '.join(left_out)}."
    console.print(hint, style="dim", highlight=False)
    for section, table in section_tables(report):
        shown = _shown(report, table)
        if section.get("short"):
            shown.caption, shown.caption_justify = Text(section["short"], style="dim"), "left"
        console.print(shown)
    for verdict in verdicts(report):
        console.print(_verdict_line(verdict))


def _width(table: "rich.table.Table") -> int:
    """What the table takes up when nothing is cut."""
    from rich.console import Console

    return Console(width=10_000).measure(table).maximum


def _shown(report: dict, table: Table, **columns) -> "rich.table.Table":
    shown = table.terminal(**columns)
    longest = max(len(model["name"]) + 2 for model in report["models"])
    shown.columns[0].header, shown.columns[0].min_width = "model", min(longest, LONGEST_NAME)
    return shown


def _verdict_line(verdict):
    from rich.text import Text

    line = Text.assemble((f"{verdict.sign} ", TONE_STYLES[verdict.tone]), (verdict.model, "bold"), ": ")
    line.append(f"{verdict.headline}. ")
    parts = [f"{finding.label} {finding.metric} {finding.value}" for finding in (verdict.forgot, verdict.kept)]
    line.append("; ".join(parts), style="dim")
    return line
