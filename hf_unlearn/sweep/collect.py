# SPDX-License-Identifier: Apache-2.0
"""What came of a sweep: from the runs' folders to one structure, `sweep.json`."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..audit.view import place_of
from ..bench.measured import costs_of
from ..cache import cache_root
from ..report.likeness import WORST, unlike_attack, unlike_settings
from ..report.privacy.write import load_privacy_report
from ..report.schema import json_ready, load_report
from ..report.sections import AUDITS_KEY, audit_metrics
from ..report.sweep.means import START, retrains
from ..report.verdict import verdicts
from ..runs.finished import add_audits
from .manifest import read_manifest
from .progress import differences, privacy_folder


SWEEP_VERSION = 1
LOSSES = {"eval_forget_loss": "forget/loss", "eval_retain_loss": "retain/loss"}
EVALUATED = "eval_"
RETRAINED, TARGET = "retrained", "target"


def collect(folder: str | Path, listed: tuple[list[dict], dict] | None = None) -> dict[str, Any]:
    """Reads all runs of a sweep.

    Args:
        folder (`str` or `Path`): of the sweep; runs that have no report yet are named as missing.
        listed (`tuple`, *optional*): rows and settings in place of the folder's manifest.

    Returns:
        `dict`: the content of `sweep.json`, see `report/sweep.py`.

    Raises:
        `ValueError`: if the folder is no sweep's, or runs were not audited alike.
    """
    folder = Path(folder)
    rows, settings = read_manifest(folder) if listed is None else listed
    runs, baselines, missing, audited, targets, retrained = [], {}, [], {}, {}, []
    for row in rows:
        place = folder / row["folder"]
        report = _report(row, place)
        if report is None:
            missing.append(_missing(row, "no finished report"))
            continue
        privacy = _privacy(row, place)
        if row["privacy"] is not None and privacy is None:
            missing.append(_missing(row, "no privacy audit"))
        missing += [_missing(row, f"its {kind} audit is of another model") for kind in _later(report, place)]
        _check_audits(row, report, audited)
        runs.append(_run(row, report, place, privacy))
        kinds = {_kind(row, model): model for model in report["models"]}
        targets[row["target"]] = targets.get(row["target"]) or kinds.get(TARGET)
        retrained += [(runs[-1], row, report, privacy)] if START in kinds else []
        for baseline in _baselines(row, report, privacy):
            baselines.setdefault((baseline["kind"], baseline["path"], baseline["target"]), []).append(baseline)
    for run, row, report, privacy in retrained:
        run["verdict"] = _verdict(row, report, privacy, targets[row["target"]])
    baselines = [_one_of(found) for found in baselines.values()]
    return json_ready({
        "sweep_version": SWEEP_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "swept": list(dict.fromkeys(field for row in rows for field in row["setting"])),
        "planned": len(rows),
        "runs": runs,
        "baselines": [*baselines, *more_retrained(folder, baselines)],
        "missing": missing,
    })  # fmt: skip


def more_retrained(folder: Path, baselines: list[dict]) -> list[dict]:
    """Further models that never saw the forget rows, each with its `hf-unlearn eval` in `retrained/<name>/` of the
    sweep's folder, and its further audits there.

    Raises:
        `ValueError`: for one that was not audited as the runs' retrained model was.
    """
    found = []
    gold = next((one for one in baselines if one["kind"] == "retrained"), None)
    taken = set() if gold is None else {place_of(gold["path"])}
    for place in sorted(path.parent for path in folder.glob(f"{RETRAINED}/*/report.json")):
        report = load_report(place)
        model = next(model for model in report["models"] if model["kind"] == "unlearned")
        if gold is None or (differs := unlike_settings(gold["audited"], model.get("audited"))):
            why = "the runs have no retrained model" if gold is None else f"differs in {differs}"
            raise ValueError(f"{place} was not audited as the runs' retrained model was ({why}). Audit it alike.")
        kinds = _later(report, place)
        privacy = _attacked_alone(place)
        if privacy is not None and place_of(privacy["path"]) != place_of(model["path"]):
            kinds.append("privacy")
        if kinds:
            raise ValueError(
                f"{place}: its {kinds[0]} audit is of another model than {model['path']!r}. Audit it again."
            )
        attacks = [(one or {}).get("settings", {}) for one in (gold["privacy"], privacy)]
        if all(attacks) and (differs := unlike_attack(WORST, *attacks)):
            raise ValueError(f"{place} and the runs' retrained model do not compare: {differs}. Audit it alike.")
        if place_of(model["path"]) in taken:
            raise ValueError(
                f"{place} is of {model['path']!r}, which is there already: a spread requires other models."
            )
        taken.add(place_of(model["path"]))
        # A place in the cache says nothing to a reader.
        named = model["path"] and not Path(model["path"]).is_relative_to(cache_root())
        path = model["path"] if named else place.name
        about = {"kind": "retrained", "path": path, "target": None, "disagrees": []}
        metrics = model["metrics"] | audit_metrics(model)
        found.append({**about, "dataset": gold["dataset"], "metrics": metrics, "privacy": privacy})
    return found


def _attacked_alone(place: Path) -> dict | None:
    """What attacks found in a folder's only attacked model."""
    found = _attacks(place, ("unlearned",))
    return None if found is None else found["unlearned"]


def variant_of(setting: dict[str, Any]) -> str:
    """The fields that vary, as a text: `beta=0.1 learning_rate=1e-05`."""
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in setting.items()
    )


def _report(row: dict, place: Path) -> dict | None:
    try:
        report = load_report(place)
    except ValueError:
        return None
    told = report["settings"].get(row["name"])
    return report if isinstance(told, dict) and not differences(told, row["resolved"]) else None


def _later(report: dict, place: Path) -> list[str]:
    """Gives the models of a run's report what audits found that were made later, into its folder; returns the kinds
    whose files do not know the run's model."""
    own = next(model for model in report["models"] if model["kind"] == "unlearned")
    # Attacks on scores are the sweep's own, and read apart.
    found = add_audits(report["models"], place, leave_out=("privacy",))
    return [kind for kind in found if kind not in (own.get(AUDITS_KEY) or {})]


def _check_audits(row: dict, report: dict, first: dict[tuple, tuple[str, dict]]) -> None:
    """Refuses a run that was audited otherwise than the first one of its target. Audits may be made run by run."""
    own = next(model for model in report["models"] if model["kind"] == "unlearned")
    for kind, found in (own.get(AUDITS_KEY) or {}).items():
        name, settings = first.setdefault((kind, row["target"]), (row["name"], found["settings"]))
        if differs := unlike_settings(settings, found["settings"]):
            raise ValueError(
                f"{name} and {row['name']} do not compare: their {kind} audits differ in {differs}. Audit both alike."
            )


def _privacy(row: dict, place: Path) -> dict[str, dict] | None:
    """What attacks found in the run, its target and the retrained model."""
    # In the order in which the sweep names them to the audit.
    return None if row["privacy"] is None else _attacks(place, ("target", "unlearned"))


def _attacks(place: Path, names: tuple[str, ...]) -> dict[str, dict] | None:
    """What attacks found in the models that were attacked together, and in the retrained one, without what is there
    for every row but its scores."""
    try:
        report = load_privacy_report(privacy_folder(place))
    except ValueError:
        return None
    attacked = [model for model in report["models"] if model["kind"] == "attacked"]
    if len(attacked) != len(names):
        raise ValueError(f"{privacy_folder(place)} holds {len(attacked)} attacked models, and {len(names)} are read.")
    models = dict(zip(names, attacked, strict=True))
    models |= {model["kind"]: model for model in report["models"] if model["kind"] == "retrained"}
    for model in models.values():
        model.pop("representations", None)
        model["metrics"] = {
            name: {key: value for key, value in metric.items() if key != "per_item"}
            for name, metric in model["metrics"].items()
        }
    return models


def _run(row: dict, report: dict, place: Path, privacy: dict | None) -> dict[str, Any]:
    model = next(model for model in report["models"] if model["kind"] == "unlearned")
    resolved, train = row["resolved"], model.get("train") or {}
    points = _points(place / "metrics.jsonl")
    steps = train.get("steps") or 0
    end = [point["values"] for point in points if point["step"] >= steps]
    values = {name: value for one in end for name, value in one.items()}
    metrics = model["metrics"] | audit_metrics(model)
    values |= {name: metric["value"] for name, metric in metrics.items()}
    return {
        **_about(row),
        "id": row["id"],
        "method": row["method"],
        "setting": row["setting"],
        "tags": row["tags"],
        "dataset": _dataset(resolved),
        "model": resolved["model_name_or_path"],
        "fields": {key: value for key, value in resolved.items() if isinstance(value, (int, float, str))},
        "seconds": train.get("seconds"),
        "flops": train.get("flops"),
        "cost": _cost(row["method"], resolved.get("retain_loss")),
        "metrics": metrics,
        "audits": list(audit_metrics(model, shown=True)),
        "values": values,
        "points": [point for point in points if point["step"] < steps],
        "rounds": _rounds(resolved, [*points, {"step": steps, "values": values}]),
        "privacy": None if privacy is None else privacy["unlearned"],
        "verdict": _verdict(row, report, privacy),
        "made": {key: report.get(key) for key in ("created", "machine", "versions")},
    }


def _cost(method: str, retain_loss: str | None) -> dict[str, float] | None:
    """Time and memory of a step beside fine-tuning on the same rows, as the shipped bench has them: of this retain
    term, or else the method's most expensive case."""
    costs = costs_of(method, retain_loss) or costs_of(method)
    if not costs:
        return None
    return {"time": max(cost.time for cost in costs), "memory": max(cost.memory for cost in costs)}


def _verdict(row: dict, report: dict, privacy: dict | None, target: dict | None = None) -> dict[str, str]:
    """What a run's report says in one line, with the attacks that the sweep made beside it; and that line without
    numbers, which several runs may share. A retrained model is held against the target of the other runs: what it
    started from has nothing to keep or to forget."""
    models = []
    for model in report["models"]:
        if _kind(row, model) == START:
            models += [] if target is None else [target]
        else:
            found = (privacy or {}).get(model["kind"])
            models.append(model if found is None else model | {"privacy": found})
    found = verdicts({**report, "models": models})[0]
    return {"line": found.line, "short": found.short}


def _about(row: dict) -> dict[str, Any]:
    about = {key: row[key] for key in ("name", "label", "seed", "tuning", "target")}
    return {**about, "variant": variant_of(row["setting"])}


def _missing(row: dict, why: str) -> dict[str, Any]:
    return {**_about(row), "why": why}


def _dataset(resolved: dict) -> str:
    if resolved.get("benchmark") is None:
        return str(resolved.get("forget_dataset"))
    return ":".join(str(resolved[key]) for key in ("benchmark", "forget_split") if resolved.get(key))


def _baselines(row: dict, report: dict, privacy: dict | None) -> list[dict]:
    return [
        {
            "kind": _kind(row, model),
            "path": model["path"],
            "audited": model.get("audited"),
            "target": row["target"],
            "dataset": _dataset(row["resolved"]),
            "metrics": model["metrics"] | audit_metrics(model),
            "privacy": (privacy or {}).get(model["kind"]),
        }
        for model in report["models"]
        if model["kind"] != "unlearned"
    ]


def _kind(row: dict, model: dict) -> str:
    """What a report's model is to the sweep: what retraining starts from is no model that knows the forget rows."""
    return START if model["kind"] == TARGET and retrains(row["method"], row["resolved"]) else model["kind"]


def _one_of(found: list[dict]) -> dict:
    """Of a baseline that was audited with many runs, the first; and where the others say otherwise."""
    first = found[0]
    first["privacy"] = next((one["privacy"] for one in found if one["privacy"]), None)
    # Some runs may have been audited further, later.
    metrics = {name: metric for one in reversed(found) for name, metric in one["metrics"].items()}
    known = [{name: metric["value"] for name, metric in one["metrics"].items()} for one in found]
    first["disagrees"] = sorted(
        name
        for name, metric in metrics.items()
        if any(one.get(name, metric["value"]) != metric["value"] for one in known)
    )
    first["metrics"] = metrics
    return first


def _points(file: Path) -> list[dict[str, Any]]:
    """The evaluations on the way, by step."""
    found: dict[int, dict] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines:
        logged = json.loads(line)
        values = {LOSSES[key]: value for key, value in logged.items() if key in LOSSES}
        values |= {key.removeprefix(EVALUATED): v for key, v in logged.items() if _is_metric(key)}
        if values:
            found.setdefault(logged["step"], {}).update(values)
    return [{"step": step, "values": found[step]} for step in sorted(found)]


def _is_metric(key: str) -> bool:
    return key.startswith(EVALUATED) and key not in LOSSES and ("/" in key or key == "eval_model_utility")


def _rounds(resolved: dict, points: list[dict]) -> list[dict[str, Any]]:
    """Of a method that unlearns in rounds, the last evaluation in each round's unlearning stage, if there is one."""
    if "first_align_steps" not in resolved:
        return []
    rounds, end = [], 0
    for number, threshold in enumerate(resolved["thresholds"]):
        begin = end + resolved["align_steps" if number else "first_align_steps"]
        end = begin + resolved["unlearn_steps"]
        values: dict[str, Any] = {}
        for point in points:
            if begin < point["step"] <= end:
                values |= point["values"]
        if values:
            rounds.append({"round": number + 1, "threshold": threshold, "values": values})
    return rounds
