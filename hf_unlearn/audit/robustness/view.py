# SPDX-License-Identifier: Apache-2.0
"""How audits of robustness read: before, after, and what is left beside a model that never knew."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...report.drawing import save_figures
from ...report.naming import format_interval, format_number
from ...report.robustness import panels, robustness_figure
from ...report.sections import AUDITS_KEY, cell_of, section_cell
from ...report.table import Cell
from ..view import AuditView


WORST = "worst/remaining"
TEXT = (
    "Before and after the attack, at the setting that brings most out of each model. `remaining` is 1 for the "
    "original model and 0 for one that never knew the rows, both attacked alike; the one whose interval reaches "
    "highest is shown."
)


class RobustnessView(AuditView):
    """The view of one kind of attack.

    Args:
        name (`str`), title (`str`): the kind's.
        text (`str`): what the attack does, in one or two sentences.
    """

    def __init__(self, name: str, title: str, text: str):
        super().__init__(name, title=title, text=f"{text} {TEXT}", columns={WORST: "Remaining ↓"})

    def write(self, found: Mapping[str, Any], output_dir: str | Path) -> dict[str, Path]:
        """Writes `plots/robustness_<name>.png` too, where there is something to draw."""
        figure = {self._figure: partial(robustness_figure, self._report(found), self.name, self.title)}
        save_figures(figure, Path(output_dir) / "plots")
        return super().write(found, output_dir)

    def render(self, found: Mapping[str, Any]) -> str:
        text = super().render(found)
        if not panels(self._report(found)["models"], self.name):
            return text
        head, line, rest = text.partition("\n## ")
        return f"{head}\n![{self.title}](plots/{self._figure}.png)\n{line}{rest}"

    @property
    def _figure(self) -> str:
        return f"robustness_{self.name}"

    def _report(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """A file's models as a report has them."""
        return {"models": [{**model, AUDITS_KEY: {self.name: self.summary(model)}} for model in found["models"]]}

    def section(self, models):
        section = super().section(models)
        if section is not None:
            section["headings"] = ["Score", "Before", "After", "Remaining ↓", "Verdict"]
        return section

    def _row(self, name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        worst = metrics.get(WORST)
        details = {} if worst is None else worst["details"]
        before, after, which = (_number(details.get(key)) for key in ("before", "after", "which"))
        if worst is None:
            # The original and the retrained model have nothing to be compared with.
            first = next((key for key in metrics if key.startswith("before/")), None)
            which = "" if first is None else first.removeprefix("before/")
            before = _number(metrics[first]["value"]) if first else ""
            after = next((_number(m["value"]) for key, m in metrics.items() if key.endswith(f"{which}/after")), "")
        words = [str(which).removesuffix("/remaining"), before, after]
        said = details.get("verdict", "")
        if details.get("reason"):
            said = f"{said}: {details['reason']}"
        if details.get("says"):
            said = f"{said}; {details['says']}"
        cells = [_text(word) for word in words]
        return {"model": name, "cells": [*cells, _remaining(worst), _text(said)]}


def _remaining(worst: Mapping[str, Any] | None) -> dict[str, Any]:
    if worst is None or worst["value"] is None:
        return cell_of(worst)
    text, interval = format_number(WORST, worst["value"]), format_interval(WORST, worst)
    return section_cell(Cell(text, interval, (f"n = {worst['n']:,}",)))


def _number(value: Any) -> Any:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def _text(text: Any) -> dict[str, Any]:
    return section_cell(Cell(str(text)))
