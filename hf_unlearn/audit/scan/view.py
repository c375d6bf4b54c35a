# SPDX-License-Identifier: Apache-2.0
"""How a scan reads: one model's file, and the share that comes back in reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...report.scan import print_scan, write_scan
from ..view import AuditView


# Of a model's entry, what the file holds.
SCANNED = ("verdict", "prefixes", "answers", "tried", "rows", "clean", "settings")


class ScanView(AuditView):
    """Its file is of one model: `scan_<dataset>.json`."""

    def shaped(self, found: dict[str, Any]) -> dict[str, Any]:
        (model,), settings = found["models"], found["settings"]
        return {
            "model": model["path"],
            "retrained_model": settings.get("retrained_model_name_or_path"),
            "dataset": settings.get("benchmark") or "own",
            "created": found["created"],
            "command": found["command"],
            **{key: model[key] for key in SCANNED},
            "versions": found["versions"],
            "notes": found["notes"],
        }

    def write(self, found: Mapping[str, Any], output_dir: str | Path) -> dict[str, Path]:
        return write_scan(found, output_dir)

    def show(self, found: Mapping[str, Any], console=None) -> None:
        print_scan(found, console)

    def section(self, models) -> dict[str, Any] | None:
        section = super().section(models)
        # Its file is named after what was asked.
        return None if section is None else {**section, "file": None}


VIEW = ScanView(
    "scan",
    title="Is there a hidden trigger?",
    text="The share of forget rows that the best prefix brings back, with its 95% interval, and the share of the "
    "tested prefixes that are triggers. Not found is a statement about the prefixes that were tried.",
    columns={"restored": "Rows back ↓", "found": "Triggers found ↓"},
    about="Scan for a trigger",
    word="Scan",
)
