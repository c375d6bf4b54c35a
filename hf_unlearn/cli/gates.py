# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn gates RUN`: compares a run's report with thresholds; a pipeline can continue by the exit status.

Exit status: 0 if all gates passed, 1 if one failed, 3 if none failed but one is unresolved or missing, 2 for an error
in the command or the thresholds.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

from ..audit.registry import AUDITS
from ..files import write_json, write_text
from ..report.sections import AUDITS_KEY
from ..runs.help import CommandParser


REPORT, ROBUSTNESS = "report.json", "robustness.json"


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn gates", description=__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="run directory, or its report.json; or the robustness.json of a checkpoint's audits"
    )
    parser.add_argument(
        "--thresholds",
        metavar="FILE",
        help="YAML file of gates, see docs/gates.md (default: the shipped ones for classifiers or language models)",
    )
    parser.add_argument(
        "--privacy", metavar="PATH", help="privacy.json or its folder (RUN/privacy.json, RUN/privacy/privacy.json)"
    )
    args = parser.parse_args(argv)
    status = gates(Path(args.run), args.thresholds, args.privacy)
    if status:
        raise SystemExit(status)


def gates(run: Path, thresholds: str | None = None, privacy: str | None = None) -> int:
    """Writes `gates.json` and `gates.md` beside the report, prints them and returns the exit status."""
    from ..report.gates.evaluate import EXIT_STATUS, judge
    from ..report.gates.spec import default_thresholds, load_gates
    from ..report.gates.view import print_gates, render_gates
    from ..report.privacy.write import load_privacy_report
    from ..report.schema import load_report

    folder = run if run.is_dir() else run.parent
    alone = run.name == ROBUSTNESS or ((run / ROBUSTNESS).is_file() and not (run / REPORT).is_file())
    report = _of_checkpoint(run) if alone else load_report(run)
    path = default_thresholds(report) if thresholds is None else Path(thresholds)
    asked = load_gates(path)
    if alone and thresholds is None:
        asked = [gate for gate in asked if gate.metric.split("/")[0] in report["audits"]]
    _add_audits(report, folder)
    found = _privacy_file(folder) if privacy is None else Path(privacy)
    attacked = None if found is None else load_privacy_report(found)
    _add_items(report, folder / "audit")
    result = judge(report, asked, attacked, AUDITS) | {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "report_created": report["created"],
        "thresholds": str(path),
        "privacy": None if found is None else str(found),
    }
    write_json(folder / "gates.json", result, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "gates.md", render_gates(result))
    print_gates(result)
    print(f"Gates: {folder / 'gates.md'}, by {path}")
    return EXIT_STATUS[result["status"]]


def _of_checkpoint(path: Path) -> dict:
    """Audits of robustness of a checkpoint that no run made, as a report has them.

    Raises:
        `ValueError`: for a file that is none, or of no audited model.
    """
    from ..audit.robustness.several.view import VIEW

    found = VIEW.load(path)
    kinds = {"original": "target", "audited": "unlearned"}
    models = [{**model, "kind": kinds.get(model["kind"], model["kind"])} for model in found["models"]]
    return {**found, "models": models}


def _add_audits(report: dict, folder: Path) -> None:
    """Gives a report's models what was found by audits that were made later, into the run's folder."""
    for name in AUDITS:
        if any(name in (model.get(AUDITS_KEY) or {}) for model in report["models"]):
            continue
        if (folder / name / f"{name}.json").is_file():
            AUDITS[name].view.add(report["models"], AUDITS[name].view.load(folder / name))


def _privacy_file(folder: Path) -> Path | None:
    """Where attacks' results of a run are: in its folder, or where a sweep puts them."""
    from ..report.privacy.table import PRIVACY_FOLDER
    from ..runs.finished import PRIVACY

    places = (folder / PRIVACY, folder / PRIVACY_FOLDER / PRIVACY)
    return next((path for path in places if path.is_file()), None)


def _add_items(report: dict, folder: Path) -> None:
    """Gives a report's metrics their items' values from the audits that the run kept, where those are of the same rows
    and found what the report says."""
    from ..audit import Audit

    kinds = [model["kind"] for model in report["models"]]
    audits = {}
    for model in report["models"]:
        path = folder / f"{model['kind']}.json"
        if kinds.count(model["kind"]) == 1 and path.is_file():
            audits[model["name"]] = Audit.load(path)
    if len({json.dumps(audit.settings["sets"], sort_keys=True) for audit in audits.values()}) != 1:
        return
    for model in (model for model in report["models"] if model["name"] in audits):
        for name, metric in model["metrics"].items():
            kept = audits[model["name"]].metrics.get(name)
            if kept is not None and (kept.value, kept.n) == (metric["value"], metric["n"]):
                metric["per_item"] = kept.per_item
