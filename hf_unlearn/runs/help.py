# SPDX-License-Identifier: Apache-2.0
"""How commands explain themselves: in lines as wide as the terminal, and a mistake in one line."""

import argparse
import shutil
import textwrap
from collections.abc import Iterable


def width() -> int:
    """Columns of the terminal, `$COLUMNS` first; wide ones are not filled."""
    return max(40, min(shutil.get_terminal_size().columns, 120))


def fill(text: str) -> str:
    """Paragraphs as wide as the terminal."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), width()) for paragraph in paragraphs)


def entries(items: Iterable[tuple[str, str]]) -> str:
    """Names in one column and what they are in a second, as wide as the terminal."""
    items = list(items)
    margin = 4 + max(len(name) for name, _ in items)
    lines = []
    for name, what in items:
        first = f"  {name:<{margin - 4}}  "
        lines.append(textwrap.fill(what, width(), initial_indent=first, subsequent_indent=" " * margin))
    return "\n".join(lines)


class Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph of a description by itself."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, **{"width": width(), **kwargs})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fill(text)


class Fields(argparse.ArgumentDefaultsHelpFormatter, Paragraphs):
    """Shows a field by its own name and those that differ from it in more than dashes, with its default."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spelled = [word for word in action.option_strings if "-" not in word.strip("-")]
        values = "" if action.nargs == 0 else f" {self._format_args(action, action.metavar or 'VALUE')}"
        return ", ".join(spelled or action.option_strings) + values


class CommandParser(argparse.ArgumentParser):
    """The arguments of one command; its description is in paragraphs."""

    def __init__(self, prog: str, description: str, usage: str | None = None):
        super().__init__(prog=prog, usage=usage, description=description, formatter_class=Paragraphs)

    def error(self, message: str):
        raise ValueError(f"{message}. `{self.prog} --help` tells more.")
