# SPDX-License-Identifier: Apache-2.0
"""What is done, what goes on and what begins: read from the runs' folders, which are all the memory there is."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..report.privacy.write import load_privacy_report
from ..report.schema import json_ready, load_report
from ..training.checkpoints import last_whole
from .expand import PLACE_FIELDS, Run


DONE, RESUMES, BEGINS = "done", "goes on", "begins"
RECIPE_FILE = "recipe.yaml"
OPTIONS_FILE = "options.yaml"


def state_of(run: Run) -> str:
    """`done`, `goes on` (from a checkpoint) or `begins`.

    Raises:
        `ValueError`: if the folder holds another run.
    """
    _check_own(run)
    if report_of(run) is not None:
        return DONE
    return BEGINS if last_whole(run.folder) is None else RESUMES


def report_of(run: Run) -> dict | None:
    """The report of this very run, if it is finished."""
    try:
        report = load_report(run.folder)
    except ValueError:
        return None
    if report.get("unfinished"):
        # One of its audits failed.
        return None
    told = report["settings"].get(run.name)
    same = isinstance(told, dict) and not differences(told, run.resolved)
    return report if same and any(model["kind"] == "unlearned" for model in report["models"]) else None


def differences(held: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Fields in which two resolved recipes differ, apart from where they run and their environment."""
    held, asked = json_ready(held), json_ready(asked)
    keys = {*held, *asked} - {*PLACE_FIELDS, "env"}
    return sorted(key for key in keys if held.get(key) != asked.get(key))


def privacy_done(run: Run) -> bool:
    """Whether the run's membership-inference audit is there, of these options; also if none is asked for."""
    if run.privacy is None:
        return True
    folder = privacy_folder(run.folder)
    try:
        same = yaml.safe_load((folder / OPTIONS_FILE).read_text(encoding="utf-8")) == json.loads(
            json.dumps(run.privacy)
        )
        load_privacy_report(folder)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return same


def privacy_folder(folder: Path) -> Path:
    """Where a run's membership-inference audit is."""
    return folder / "privacy"


def _check_own(run: Run) -> None:
    recipe = run.folder / RECIPE_FILE
    if not recipe.is_file():
        return
    differs = differences(yaml.safe_load(recipe.read_text(encoding="utf-8")), run.resolved)
    if differs:
        raise ValueError(
            f"{str(run.folder)!r} holds another run, which differs in {', '.join(differs)}. Give another "
            "`--output_dir`, or delete that folder."
        )
