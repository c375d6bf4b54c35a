# SPDX-License-Identifier: Apache-2.0
"""What a report holds of further audits, and the sections that their views made of it: one row a model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .naming import UNDEFINED
from .table import Cell, Table


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
    """A metric as a section shows it."""
    if metric is None:
        return section_cell(Cell(UNDEFINED))
    if metric["value"] is None:
        return section_cell(Cell(metric["details"].get("status", "undefined")))
    ends = metric["interval"]
    interval = "" if ends is None else "[{:.4g}, {:.4g}]".format(*ends)
    return section_cell(Cell(f"{metric['value']:.4g}", interval, (f"n = {metric['n']:,}",)))


def section_cell(cell: Any) -> dict[str, Any]:
    """A cell as JSON: its `text`, `interval` and further `lines`."""
    return {"text": cell.text, "interval": cell.interval, "lines": list(cell.lines)}


def section_table(section: Mapping[str, Any], named: Callable[[str], Any]) -> Table:
    """A section as a table.

    Args:
        section (`dict`): of a report's `sections`.
        named (`Callable`): how a model's name is written.
    """
    rows = [
        [named(row["model"]), *(Cell(c["text"], c["interval"], tuple(c["lines"])) for c in row["cells"])]
        for row in section["rows"]
    ]
    return Table(["Model", *section["headings"]], rows, section["title"], numbers=True)


def section_markdown(section: Mapping[str, Any], table: Table) -> str:
    """A section with its table as markdown."""
    parts = [f"## {section['title']}", section["text"], table.markdown()]
    if section["file"]:
        parts.append(f"{section['more']}: [`{section['file']}`]({section['file']}).")
    return "\n\n".join(parts)


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
