# SPDX-License-Identifier: Apache-2.0
"""Finished runs on disk: found in folders, read with what attacks found in them, and put side by side."""

from pathlib import Path

from ..report import load_report
from ..report.likeness import WORST, unlike_attack
from ..report.privacy import load_privacy_report
from ..report.privacy_table import PRIVACY_FOLDER, add_privacy


REPORT, PRIVACY = "report.json", "privacy.json"


def find_runs(names: list[str], output_dir: Path) -> list[Path]:
    """The runs that are named: each a run's folder or its `report.json`, or a folder of runs' folders.

    Args:
        names (`list[str]`): what the user named.
        output_dir (`Path`): what is there is a comparison of runs and none itself.

    Raises:
        `ValueError`: where there is no report.
    """
    found: list[Path] = []
    for path in map(Path, names):
        if not path.is_dir() or (path / REPORT).is_file():
            found.append(path)
            continue
        inside = [report.parent for report in sorted(path.glob(f"*/{REPORT}"))]
        inside = [run for run in inside if run.resolve() != output_dir.resolve()]
        if not inside:
            raise ValueError(
                f"No report in {path} or in a folder there: give a run's folder, its {REPORT}, a {PRIVACY}, or a "
                "folder that holds runs' folders."
            )
        print(f"{path} holds {len(inside)} runs: {', '.join(run.name for run in inside)}.")
        found += inside
    return list(dict.fromkeys(found))


def load_runs(runs: list[Path]) -> tuple[list[dict], list[dict]]:
    """The reports of runs, and what attacks found in those that were attacked."""
    reports, attacked = [load_report(run) for run in runs], []
    for run, report in zip(runs, reports, strict=True):
        folder = (run if run.is_dir() else run.parent) / PRIVACY_FOLDER
        if (folder / PRIVACY).is_file():
            privacy = load_privacy_report(folder)
            add_privacy(report["models"], privacy)
            attacked.append(_named(privacy, report))
    return reports, attacked


def merge_privacy(reports: list[dict], title: str) -> dict:
    """One `privacy.json` over several runs; models of the same name and path are shown once.

    Raises:
        `ValueError`: if they were attacked on different rows or with other settings.
    """
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
    order = {"target": 0, "retrained": 1}
    return {
        **reports[0],
        "title": f"Membership inference: {title}",
        "command": None,
        "models": sorted(models.values(), key=lambda model: order.get(model["name"], 2)),
        "notes": list(dict.fromkeys(note for report in reports for note in report["notes"])),
    }


def is_privacy(name: str) -> bool:
    """Whether this is a `privacy.json`, or the folder of one and of no run."""
    path = Path(name)
    return path.name == PRIVACY or ((path / PRIVACY).is_file() and not (path / REPORT).is_file())


def _named(privacy: dict, report: dict) -> dict:
    """With the names that the report gives its models: those of a sweep's audit are folders' names."""
    names = {model["path"]: model["name"] for model in report["models"]}
    models = [{**model, "name": names.get(model["path"], model["name"])} for model in privacy["models"]]
    return {**privacy, "models": models}
