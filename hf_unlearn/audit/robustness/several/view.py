# SPDX-License-Identifier: Apache-2.0
"""How several audits of robustness read together: how much is left at worst by each, and what that says."""

from collections.abc import Mapping
from typing import Any

from ....report.findings import WORST
from ....report.sections import AUDITS_KEY, cell_of, section_cell, section_markdown, section_table
from ....report.table import Cell, escape
from ....report.verdict import returns_line
from ...registry import AUDITS
from ...view import AuditView


NOTE = (
    "An attack that brings nothing back bounds what this attack finds with this budget. It does not show that "
    "knowledge was removed."
)


class SeveralView(AuditView):
    """The view of `robustness.json`: models with what each audit found in them, as a report holds it."""

    def together(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """One file over several kinds' files of the same models.

        Args:
            found (`dict[str, dict]`): kind to the content of its file.
        """
        first = next(iter(found.values()))
        models = {}
        for kind, content in found.items():
            for entry in content["models"]:
                about = {key: entry[key] for key in ("name", "kind", "path")}
                model = models.setdefault(entry["name"], {**about, AUDITS_KEY: {}})
                model[AUDITS_KEY][kind] = AUDITS[kind].view.summary(entry)
        for model in models.values():
            worst = worst_of(model)
            model |= {"metrics": {} if worst is None else {WORST: worst}, "verdict": returns_line(model)}
        names = ", ".join(model["name"] for model in models.values() if model["kind"] == "audited")
        sections = (AUDITS[kind].view.section([*models.values()]) for kind in found)
        return {
            **{key: first[key] for key in ("schema_version", "created", "command", "versions")},
            "title": f"{self.about}: {names}",
            "settings": {kind: content["settings"] for kind, content in found.items()},
            "audits": list(found),
            "models": list(models.values()),
            "sections": [section for section in sections if section is not None],
            "notes": list(dict.fromkeys(note for content in found.values() for note in content["notes"])),
        }

    def section(self, models) -> dict[str, Any]:
        models = list(models)
        kinds = list(dict.fromkeys(kind for model in models for kind in model[AUDITS_KEY]))
        rows = [{"model": model["name"], "cells": self._cells(model, kinds)} for model in models]
        about = {"audit": self.name, "title": self.title, "text": self.text, "headings": [*kinds, "In words"]}
        return {**about, "rows": rows, "file": None}

    def render(self, found: Mapping[str, Any]) -> str:
        parts = [f"# {found['title']}"]
        parts += [f"    {' '.join(found['command'].split())}"] if found.get("command") else []
        for section in (self.section(found["models"]), *found["sections"]):
            shown = section_markdown({**section, "file": None}, section_table(section, escape))
            more = f"\n\n{section['more']}: [`{section['file']}`]({section['file']})." if section["file"] else ""
            parts.append(shown + more)
        return "\n\n".join([*parts, *(f"- {note}" for note in [NOTE, *found["notes"]])]) + "\n"

    def _own_section(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return self.section(found["models"])

    @staticmethod
    def _cells(model: Mapping[str, Any], kinds: list[str]) -> list[dict[str, Any]]:
        found = [(model[AUDITS_KEY].get(kind) or {"metrics": {}})["metrics"].get(WORST) for kind in kinds]
        return [*map(cell_of, found), section_cell(Cell(model["verdict"] or ""))]


def worst_of(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of what is left by each audit of a model, the one whose interval reaches highest; `which` names it."""
    found = {kind: audit["metrics"].get(WORST) for kind, audit in model[AUDITS_KEY].items()}
    found = {kind: metric for kind, metric in found.items() if metric is not None}
    if not found:
        return None
    known = {kind: metric for kind, metric in found.items() if metric["value"] is not None}
    kind = max(known or found, key=lambda kind: _end(found[kind]))
    details = found[kind].get("details") or {}
    return {**found[kind], "details": {**details, "which": f"{kind}/{details.get('which', WORST)}"}}


def _end(metric: Mapping[str, Any]) -> float:
    if metric["value"] is None:
        return 0.0
    return metric["value"] if metric["interval"] is None else metric["interval"][1]


VIEW = SeveralView(
    "robustness",
    title="What is left, by attack",
    text="The largest share that is left of what the original model knew and one that never knew does not, both "
    "attacked alike: 1 is all, 0 is nothing, below 0 is less than a model that never knew.",
    columns={},
    about="Robustness",
)
