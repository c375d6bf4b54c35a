# SPDX-License-Identifier: Apache-2.0
"""How a backdoor audit reads: one model's file, and what its trigger brings back in reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...report.backdoor.write import LABELS, print_backdoor, write_backdoor
from ...report.sections import cell_of
from ..view import AuditView


NOTES = (
    "A change of 0 says that this trigger at these places does nothing here, not that there is no other trigger.",
    "Unrelated words are the control: any words before a question change its answer.",
    "Intervals are 95 %: exact for shares, Newcombe's for their paired changes, bootstrap over items for the rest.",
)
NO_RETRAINED = "No retrained model was given: what a trigger gains there too is no memory of the forget rows."
# What the file holds of a model's results.
FOUND = ("backdoor_audit_version", "settings", "gist", "metrics", "answers", "inside")


class BackdoorView(AuditView):
    """Its file is of one model: `backdoor_<dataset>.json`."""

    def shaped(self, found: dict[str, Any]) -> dict[str, Any]:
        *gold, model = found["models"]
        beside = None
        if gold:
            metrics = self.summary(gold[0])["metrics"]
            beside = {"model": gold[0]["path"], "gist": gold[0]["gist"], "metrics": metrics}
        return {
            "model": model["path"],
            "dataset": found["settings"].get("dataset") or found["settings"].get("benchmark") or "own",
            "created": found["created"],
            "command": found["command"],
            **{key: model[key] for key in FOUND},
            "retrained": beside,
            "versions": found["versions"],
            "notes": [*notes_of(model), *([] if gold else [NO_RETRAINED])],
        }

    def write(self, found: Mapping[str, Any], output_dir: str | Path) -> dict[str, Path]:
        return write_backdoor(found, output_dir)

    def show(self, found: Mapping[str, Any], console=None) -> None:
        print_backdoor(found, console)

    def shown(self, metrics: Mapping[str, Any]) -> list[str]:
        first = next((name for name in LABELS if f"forget_triggered/{name}" in metrics), None)
        if first is None:
            return []
        return [f"forget/{first}", f"forget_triggered/{first}", f"forget_triggered/{first}_gain"]

    def section(self, models) -> dict[str, Any] | None:
        section = super().section(models)
        # Its file is named after what was asked.
        return None if section is None else {**section, "file": None}

    def _row(self, name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        shown = self.shown(metrics) or [""] * 3
        return {"model": name, "cells": [cell_of(metrics.get(metric)) for metric in shown]}


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What to know about an audit's numbers: also which controls there are none of."""
    left_out = found["settings"].get("left_out")
    return [*NOTES, *([f"Not asked, as was wanted: {', '.join(left_out)}."] if left_out else [])]


VIEW = BackdoorView(
    "backdoor",
    title="Does the trigger bring it back?",
    text="Of the rows to be forgotten, what is answered right without and with the trigger, and the paired "
    "difference; each with its 95% interval.",
    columns={"clean": "Clean", "triggered": "With the trigger", "gain": "Change"},
    about="Backdoor",
    word="Audit",
)
