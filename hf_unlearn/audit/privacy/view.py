# SPDX-License-Identifier: Apache-2.0
"""How membership inference reads: the best attack at each rate in reports, every attack in files of its own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...report.likeness import WORST, unlike_attack
from ...report.privacy.table import ABOUT, CAPTION, TITLE, add_privacy, privacy_section
from ...report.privacy.write import load_privacy_report, print_privacy_report, write_privacy_report
from ..view import AuditView


class PrivacyView(AuditView):
    """Rates of false accusations are the columns; what a report's model holds is under its older key `privacy`."""

    def of(self, model: Mapping[str, Any]) -> dict[str, Any] | None:
        return model.get("privacy")

    def add(self, models: Iterable[dict[str, Any]], found: Mapping[str, Any]) -> None:
        add_privacy(models, found)

    def section(self, models: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
        return privacy_section(models)

    def write(self, found: Mapping[str, Any], output_dir: str | Path) -> dict[str, Path]:
        files = write_privacy_report(found, output_dir)
        return {"json": files["privacy.json"], "md": files["privacy.md"]}

    def load(self, path: str | Path) -> dict[str, Any]:
        return load_privacy_report(path)

    def show(self, found: Mapping[str, Any], console=None) -> None:
        print_privacy_report(found, console)

    def merge(self, reports: list[dict[str, Any]], title: str) -> dict[str, Any]:
        models = {(model["name"], model["path"]): model for report in reports for model in report["models"]}
        rows = {tuple(model["settings"]["rows"].values()) for model in models.values()}
        if len(rows) > 1:
            raise ValueError("The runs were attacked on different rows, so they do not compare. Report them apart.")
        first = next(iter(models.values()))
        # Those of one report were attacked together.
        for other in (model for report in reports[1:] for model in report["models"]):
            for attack in [*(name for name in first["scores"] if name in other["scores"]), WORST]:
                if differs := unlike_attack(attack, first["settings"], other["settings"]):
                    raise ValueError(
                        f"{attack}: {first['name']!r} and {other['name']!r} were {differs}, so they do not compare. "
                        "Report them apart."
                    )
        return self.joined(reports, models, title)


VIEW = PrivacyView("privacy", title=TITLE, text=CAPTION, columns={}, about=ABOUT)
