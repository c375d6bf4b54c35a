# SPDX-License-Identifier: Apache-2.0
"""What a report holds of further audits, and the sections that their views made of it: one row a model."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .naming import UNDEFINED


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Of a report's model: kind of audit -> `settings`, `metrics`, and the names of those that are `shown` elsewhere.
AUDITS_KEY = "audits"
SECTION_KEYS = {"audit": str, "title": str, "headings": list, "rows": list}


def audit_metrics(model: Mapping[str, Any], shown: bool = False) -> dict[str, dict[str, Any]]:
    """The metrics of all further audits of a report's model, as `<kind>/<metric>`; with `shown` the main ones."""
    return {
        f"{kind}/{name}": metric
        for kind, found in (model.get(AUDITS_KEY) or {}).items()
        for name, metric in found["metrics"].items()
        if not shown or name in found.get("shown", ())
    }


def as_audited(model: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """A report's model with one audit's metrics in place of its own, as `<kind>/<metric>`, and that audit's settings;
    `None` where it was not audited so."""
    found = (model.get(AUDITS_KEY) or {}).get(kind)
    if found is None:
        return None
    metrics = {f"{kind}/{name}": metric for name, metric in found["metrics"].items()}
    return {**model, "metrics": metrics, "audited": found["settings"]}


def cell_of(metric: Mapping[str, Any] | None) -> dict[str, Any]:
    """A metric as a section shows it: `text`, `interval`, and further `lines`."""
    if metric is None:
        return {"text": UNDEFINED, "interval": "", "lines": []}
    if metric["value"] is None:
        return {"text": metric["details"].get("status", "undefined"), "interval": "", "lines": []}
    ends = metric["interval"]
    interval = "" if ends is None else "[{:.4g}, {:.4g}]".format(*ends)
    return {"text": f"{metric['value']:.4g}", "interval": interval, "lines": [f"n = {metric['n']:,}"]}


def render_section(section: Mapping[str, Any], named=str, escape=str) -> str:
    """A section as markdown.

    Args:
        section (`dict`): of a report's `sections`.
        named (`Callable`): how a model's name is written.
        escape (`Callable`): makes of a text what markdown shows as it is.
    """
    rows = [("Model", *section["headings"]), ("---", *["--:"] * len(section["headings"]))]
    for row in section["rows"]:
        cells = [
            "<br>".join((f"**{c['text']}** {c['interval']}".strip(), *map(escape, c["lines"]))) for c in row["cells"]
        ]
        rows.append((named(row["model"]), *cells))
    parts = [f"## {section['title']}"] if section["title"] else []
    parts += [section["text"], "\n".join("| " + " | ".join(row) + " |" for row in rows)]
    if section["file"]:
        parts.append(f"{section['more']}: [`{section['file']}`]({section['file']}).")
    return "\n\n".join(parts)


def section_table(section: Mapping[str, Any], table: "Table", named) -> "Table":
    """A section as a table of the terminal.

    Args:
        section (`dict`): of a report's `sections`.
        table (`Table`): with a column for the models.
        named (`Callable`): how a model's name is written.
    """
    from rich.text import Text

    for heading in section["headings"]:
        table.add_column(heading, justify="right")
    for row in section["rows"]:
        table.add_row(named(row["model"]), *map(_cell_text, row["cells"]))
    if section["short"]:
        table.caption, table.caption_justify = Text(section["short"], style="dim"), "left"
    return table


def print_section(section: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Prints a section by itself."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", title=Text(section["title"]), title_justify="left", title_style="bold")
    (console or Console()).print(section_table(section, table, Text))


def sections_problems(sections: Any) -> Iterable[str]:
    """What is wrong with a report's sections."""
    if not isinstance(sections, list):
        return [f"`sections` is {type(sections).__name__}, needs list"]
    return [
        f"sections[{place}]: `{key}` needs {kind.__name__}"
        for place, section in enumerate(sections)
        for key, kind in SECTION_KEYS.items()
        if not isinstance(section, dict) or not isinstance(section.get(key), kind)
    ]


def _cell_text(cell: Mapping[str, Any]):
    from rich.text import Text

    text = Text(cell["text"])
    if cell["interval"]:
        text.append("\n" + cell["interval"].strip("[]").replace(", ", "–"), style="dim")
    for line in cell["lines"]:
        text.append(f"\n{line}", style="dim")
    return text
