# SPDX-License-Identifier: Apache-2.0
"""One model of a table, and how the terminal, markdown and a page show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .style import Look


if TYPE_CHECKING:
    import rich.table
    from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """
    A number or a few words, with what is smaller beside it.

    Args:
        text (`str`): in plain text.
        interval (`str`): as `[low, high]`.
        lines (`tuple[str]`): how to read it, a line each.
        style (`str`): of the text on the terminal.
    """

    text: str
    interval: str = ""
    lines: tuple[str, ...] = ()
    style: str = ""


@dataclass(frozen=True)
class Name:
    """
    A model's name beside its marker.

    Args:
        text (`str`): the name.
        look (`Look`): how the model is drawn.
        unlearned (`bool`): whether it is a result, and no model that results are compared with.
    """

    text: str
    look: Look
    unlearned: bool

    def markdown(self) -> str:
        return f"{self.look.marker.glyph} {escape(self.text)}"

    def terminal(self) -> Text:
        from rich.text import Text

        name = Text(f"{self.look.marker.glyph} ", style=self.look.ink.dark)
        return name.append(self.text, style="bold" if self.unlearned else "")


@dataclass
class Table:
    """
    A table; its first column names the rows. A page shows it by the macro `table` of `report.html`.

    Args:
        heads (`list`): of the columns, a text or what has the methods `markdown` and `terminal`.
        rows (`list`): of texts, of [`Cell`]s (or what has their `text`, `interval` and `lines`), and of what has these
            methods.
        title (`str`): shown on the terminal.
        numbers (`bool`): whether all columns but the first stand to the right.
    """

    heads: list
    rows: list = field(default_factory=list)
    title: str = ""
    numbers: bool = False

    def markdown(self, joint: str = "<br>") -> str:
        """As GitHub and the Hub show it; texts are taken for markdown, cells are joined with their interval by
        `joint`."""
        rule = ["---", *(["--:" if self.numbers else "---"] * (len(self.heads) - 1))]
        rows = ([_markdown(cell, joint) for cell in row] for row in (self.heads, rule, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def terminal(self, **columns: Any) -> rich.table.Table:
        """As rich shows it; what is smaller stands below, dimmed. `columns` are options of all columns but the first,
        which wraps."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=Text(self.title) if self.title else None, title_justify="left",
                      title_style="bold", padding=(0, 1), pad_edge=False)  # fmt: skip
        for i, head in enumerate(self.heads):
            options = {"justify": "right" if self.numbers else "left", **columns} if i else {"overflow": "fold"}
            table.add_column(on_terminal(head), **options)
        for row in self.rows:
            table.add_row(*map(on_terminal, row))
        return table


def escape(value: Any) -> str:
    """Text that markdown shows as it is, on one line and short enough for a table."""
    text = one_line(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def clipped(value: Any, longest: int = 300) -> str:
    """What a model wrote, as one line of a table that it cannot break; emphasis stays."""
    text = one_line(str(value))
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def clipped_table(heads: list[str], rows: list[list[Any]]) -> str:
    """A table of such texts as markdown."""
    lines = [[clipped(cell) for cell in row] for row in (heads, *rows)]
    return Table(lines[0], lines[1:]).markdown()


def one_line(text: str) -> str:
    """`text` with all white space as single blanks."""
    return " ".join(text.split())


def on_terminal(cell: Any) -> Text:
    """A cell as rich shows it."""
    from rich.text import Text

    if hasattr(cell, "terminal"):
        return cell.terminal()
    if not hasattr(cell, "text"):
        return Text(str(cell))
    interval = cell.interval
    if interval.startswith("["):
        interval = interval.strip("[]").replace(", ", "–")
    text = Text(cell.text, style=getattr(cell, "style", ""))
    return text.append("".join(f"\n{line}" for line in (interval, *_lines(cell)) if line), style="dim")


def _markdown(cell: Any, joint: str) -> str:
    if hasattr(cell, "markdown"):
        return cell.markdown()
    if not hasattr(cell, "text"):
        return str(cell)
    if lines := _lines(cell):
        return "<br>".join((f"**{cell.text}** {cell.interval}".strip(), *map(escape, lines)))
    return joint.join(filter(None, (cell.text, cell.interval)))


def _lines(cell: Any) -> Iterable[str]:
    return getattr(cell, "lines", ())
