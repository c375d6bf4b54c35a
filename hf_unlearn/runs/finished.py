# SPDX-License-Identifier: Apache-2.0
"""Finished runs on disk: found in folders, read with what attacks found in them, and put side by side."""

from collections.abc import Sequence
from pathlib import Path

from ..audit.registry import AUDITS
from ..report import load_report


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


def load_runs(runs: list[Path]) -> tuple[list[dict], dict[str, list[dict]]]:
    """The reports of runs, and by kind of audit what those hold that were audited so."""
    reports, audited = [load_report(run) for run in runs], {}
    for run, report in zip(runs, reports, strict=True):
        folder = run if run.is_dir() else run.parent
        for name, found in add_audits(report["models"], folder).items():
            audited.setdefault(name, []).append(_named(found, report))
    return reports, audited


def add_audits(models: list[dict], folder: Path, leave_out: Sequence[str] = ()) -> dict[str, dict]:
    """Gives a report's models what was found by audits whose files are in the run's folder, also those made later.

    Returns:
        `dict`: kind of audit to the content of its file.
    """
    files = {}
    for view in _views():
        if view.name not in leave_out and (folder / view.name / f"{view.name}.json").is_file():
            files[view.name] = view.load(folder / view.name)
            view.add(models, files[view.name])
    return files


def merge_audits(audited: dict[str, list[dict]], title: str) -> list[tuple]:
    """One file a kind of audit over several runs, each with its view.

    Raises:
        `ValueError`: if models were not audited alike.
    """
    return [(view, view.merge(audited[view.name], title)) for view in _views() if view.name in audited]


def view_of(name: str):
    """The view of the audit whose file this is, or its folder and no run's; `None` where it is none."""
    from ..audit.robustness.several.view import VIEW

    path = Path(name)
    for view in (*_views(), VIEW):
        file = f"{view.name}.json"
        if path.name == file or ((path / file).is_file() and not (path / REPORT).is_file()):
            return view
    return None


def _views() -> list:
    return [AUDITS[name].view for name in AUDITS]


def _named(found: dict, report: dict) -> dict:
    """With the names that the report gives its models: those of a sweep's audit are folders' names."""
    names = {model["path"]: model["name"] for model in report["models"]}
    models = [{**model, "name": names.get(model["path"], model["name"])} for model in found["models"]]
    return {**found, "models": models}
