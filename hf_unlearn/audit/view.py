# SPDX-License-Identifier: Apache-2.0
"""How the results of an audit read: as files, on the terminal, and as a section of a report. Knows only the JSON."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json, write_text
from ..report.likeness import unlike_settings
from ..report.schema import load_audit
from ..report.sections import AUDITS_KEY, cell_of, section_markdown, section_table
from ..report.table import Table, escape


if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1


class AuditView:
    """The view of one kind of audit: a table of one row a model.

    What a kind shows beyond that it says in methods of its own.

    Args:
        name (`str`): the kind's.
        title (`str`), text (`str`): above the table.
        columns (`Mapping[str, str]`): metric to heading, in order.
        about (`str`, *optional*): what the numbers are about, in titles of files; by default the title.
        word (`str`): what the command calls the file that it wrote.
    """

    def __init__(
        self, name: str, *, title: str, text: str, columns: Mapping[str, str], about: str = "", word: str = "Report"
    ):
        self.name, self.title, self.text, self.columns = name, title, text, columns
        self.about, self.word = about or title, word

    # What a report holds

    def summary(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What a report holds of a model's results: settings, and metrics without their items."""
        metrics = {
            name: {key: value for key, value in metric.items() if key != "per_item"}
            for name, metric in entry["metrics"].items()
        }
        return {"settings": entry["settings"], "metrics": metrics, "shown": self.shown(metrics)}

    def shown(self, metrics: Mapping[str, Any]) -> list[str]:
        """The main metrics, which tables of other things show too."""
        return [name for name in self.columns if name in metrics]

    def add(self, models: Iterable[dict[str, Any]], found: Mapping[str, Any]) -> None:
        """Gives the models of a report what was found in them; who is who is told by the paths.

        Args:
            models (`list[dict]`): of a `report.json`.
            found (`dict`): the content of this kind's file.
        """
        entries = {place_of(entry["path"]): entry for entry in found["models"]}
        for model in models:
            if (place := place_of(model["path"])) in entries:
                model.setdefault(AUDITS_KEY, {})[self.name] = self.summary(entries[place])

    def of(self, model: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a report's model holds of this kind; `None` where it was not audited so."""
        return model.get(AUDITS_KEY, {}).get(self.name)

    def section(self, models: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The section of a report on these models; `None` where none of them was audited so."""
        rows = [(model["name"], self.of(model)) for model in models]
        rows = [self._row(name, found["metrics"]) for name, found in rows if found is not None]
        if not rows:
            return None
        return {
            "audit": self.name,
            "title": self.title,
            "about": self.about,
            "text": self.text,
            "short": None,
            "headings": list(self.columns.values()),
            "rows": rows,
            "more": "Every number",
            "file": f"{self.name}/{self.name}.md",
        }

    def _row(self, name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": name, "cells": [cell_of(metrics.get(metric)) for metric in self.columns]}

    # Files of its own

    def shaped(self, found: dict[str, Any]) -> dict[str, Any]:
        """The content of the kind's file, of what all kinds have in common."""
        return found

    def write(self, found: Mapping[str, Any], output_dir: str | Path) -> dict[str, Path]:
        """Writes `<name>.json` and `<name>.md`; returns their paths by ending."""
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {ending: folder / f"{self.name}.{ending}" for ending in ("json", "md")}
        write_json(paths["json"], found, ensure_ascii=False, allow_nan=False)
        write_text(paths["md"], self.render(found))
        return paths

    def load(self, path: str | Path) -> dict[str, Any]:
        """The content of a `<name>.json`, given as the file or its folder.

        Raises:
            `ValueError`: if there is none, or it is of another version.
        """
        return load_audit(path, self.name, SCHEMA)

    def render(self, found: Mapping[str, Any]) -> str:
        """The file as markdown."""
        parts = [f"# {found['title']}"]
        parts += [f"    {' '.join(found['command'].split())}"] if found.get("command") else []
        section = self._own_section(found)
        parts.append(section_markdown({**section, "file": None}, section_table(section, escape)))
        for model in found["models"]:
            parts.append(f"## {model['name']}\n\n{_all_numbers(model['metrics'])}")
        return "\n\n".join([*parts, *(f"- {note}" for note in found.get("notes", []))]) + "\n"

    def show(self, found: Mapping[str, Any], console: "Console | None" = None) -> None:
        """Prints the table of the models in a file's content."""
        from rich.console import Console

        (console or Console()).print(section_table(self._own_section(found), str).terminal())

    def _own_section(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return self.section([{**model, AUDITS_KEY: {self.name: model}} for model in found["models"]])

    # Several runs

    def merge(self, found: list[dict[str, Any]], title: str) -> dict[str, Any]:
        """One file over several runs; models of the same name and path are shown once.

        Raises:
            `ValueError`: if two were measured by other settings.
        """
        models = {(model["name"], model["path"]): model for one in found for model in one["models"]}
        first = next(iter(models.values()))
        for model in models.values():
            if differs := unlike_settings(first["settings"], model["settings"]):
                raise ValueError(
                    f"{self.name}: {first['name']!r} and {model['name']!r} were not measured alike ({differs}), so "
                    "they do not compare. Report them apart."
                )
        return self.joined(found, models, title)

    def joined(self, found: list[dict[str, Any]], models: Mapping[Any, dict[str, Any]], title: str) -> dict[str, Any]:
        """One file over several, with these models."""
        order = {"target": 0, "retrained": 1}
        return {
            **found[0],
            "title": f"{self.about}: {title}",
            "command": None,
            "models": sorted(models.values(), key=lambda model: order.get(model["name"], 2)),
            "notes": list(dict.fromkeys(note for one in found for note in one["notes"])),
        }


def place_of(path: str | None) -> str | None:
    """A model's folder, however it was named; a Hub id stays one."""
    return None if path is None else str(Path(path).resolve())


def _all_numbers(metrics: Mapping[str, Any]) -> str:
    """Every metric with all that is known of it."""
    rows = []
    for name, metric in metrics.items():
        cell = cell_of(metric)
        # Lists, such as the points of curves, are in the JSON.
        plain = {key: value for key, value in metric["details"].items() if not isinstance(value, (dict, list))}
        told = escape(", ".join(f"{key} {value}" for key, value in plain.items()))
        shown = f"{cell['text']} {cell['interval']}".strip()
        rows.append([f"`{name}`", shown, metric["n"], metric["direction"], told])
    return Table(["metric", "value", "n", "better", "more"], rows).markdown()
