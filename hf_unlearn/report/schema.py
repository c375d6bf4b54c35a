# SPDX-License-Identifier: Apache-2.0
"""The shape of `report.json`, and reading it back."""

import math
from pathlib import Path
from typing import Any

from ..files import read_json
from .sections import AUDITS_KEY, sections_problems


SCHEMA_VERSION = 1
KINDS = ("target", "retrained", "unlearned")
DIRECTIONS = ("higher", "lower", "closer_to_retrained", "none")
REPORT_KEYS = {"title": str, "created": str, "suite": str, "settings": dict, "versions": dict, "models": list}
METRIC_KEYS = ("value", "n", "interval", "direction", "variant")
ANSWER_KEYS = ("set", "question", "expected", "answer")


def validate_report(report: Any) -> dict:
    """Checks the shape of a report, all of it, before anything is drawn from it.

    Args:
        report (`dict`): the content of a `report.json`.

    Returns:
        `dict`: the same report.

    Raises:
        `ValueError`: naming every place that is wrong, and what belongs there.
    """
    if not isinstance(report, dict):
        raise ValueError(f"A report is a JSON object, got {type(report).__name__}.")
    version = report.get("schema_version")
    if version is None:
        raise ValueError(
            f"This is no report: `schema_version` is missing. This version of hf_unlearn writes and reads "
            f"schema_version {SCHEMA_VERSION}."
        )
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version={version!r}; this version of hf_unlearn reads {SCHEMA_VERSION}. "
            "Read the report with the version of hf_unlearn that wrote it, or audit the checkpoints again."
        )
    problems = [
        f"`{key}` is {_found(report, key)}, needs {kind.__name__}"
        for key, kind in REPORT_KEYS.items()
        if not isinstance(report.get(key), kind)
    ]
    if isinstance(report.get("models"), list):
        problems += _models_problems(report["models"])
    problems += sections_problems(report.get("sections", []))
    if problems:
        raise ValueError("The report does not fit its schema:\n  - " + "\n  - ".join(problems))
    return report


def load_report(path: str | Path) -> dict:
    """Reads and checks a `report.json`.

    Args:
        path (`str` or `Path`): the file, or the run directory that holds it.

    Returns:
        `dict`: the report.

    Raises:
        `ValueError`: if the file is no report of a schema version that this library reads.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    if not path.is_file():
        raise ValueError(f"No report at {path}: give a report.json, or the run directory that holds one.")
    report = read_json(path)
    try:
        return validate_report(report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_audit(path: str | Path, name: str, schema: int) -> dict[str, Any]:
    """The content of an audit's `<name>.json`, given as the file or its folder.

    Raises:
        `ValueError`: if there is none, or it is of another version.
    """
    path = Path(path)
    path = path / f"{name}.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"No {name} report at {path}. `hf-unlearn audit {name}` writes one.")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema_version") != schema or "models" not in found:
        raise ValueError(f"{path} is no {name} report of schema {schema}.")
    return found


def json_ready(value: Any) -> Any:
    """`value` with tuples as lists and numbers that JSON cannot hold (a diverged loss) as None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _found(holder: dict, key: str) -> str:
    return type(holder[key]).__name__ if key in holder else "missing"


def _models_problems(models: list) -> list[str]:
    if not models:
        return ["`models` is empty, needs at least one model"]
    if not all(isinstance(model, dict) for model in models):
        return ["`models` needs objects"]
    problems = []
    names = [model.get("name") for model in models]
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        problems.append(f"model names must differ; repeated: {', '.join(repeated)}")
    for index, model in enumerate(models):
        where = f"models[{index}]"
        if not isinstance(model.get("name"), str) or not model["name"]:
            problems.append(f"{where}: `name` is {_found(model, 'name')}, needs a non-empty str")
        else:
            where += f" ({model['name']})"
        if model.get("kind") not in KINDS:
            problems.append(f"{where}: kind={model.get('kind')!r}; allowed: {', '.join(KINDS)}")
        if isinstance(model.get("metrics"), dict):
            problems += [p for name, m in model["metrics"].items() for p in _metric_problems(f"{where} {name}", m)]
        else:
            problems.append(f"{where}: `metrics` is {_found(model, 'metrics')}, needs dict")
        problems += _answers_problems(where, model.get("answers") or [])
        problems += _privacy_problems(where, model.get("privacy"))
        for kind, found in (model.get(AUDITS_KEY) or {}).items():
            problems += _privacy_problems(where, found, kind)
    return problems


def _metric_problems(where: str, metric: Any) -> list[str]:
    if not isinstance(metric, dict):
        return [f"{where}: is {type(metric).__name__}, needs dict"]
    missing = [key for key in METRIC_KEYS if key not in metric]
    if missing:
        return [f"{where}: missing {', '.join(missing)}"]
    problems = []
    if metric["value"] is not None and not _is_number(metric["value"]):
        problems.append(f"{where}: value={metric['value']!r}, needs a number or null")
    interval = metric["interval"]
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(_is_number, interval))
    if interval is not None and not is_pair:
        problems.append(f"{where}: interval={interval!r}, needs [low, high] or null")
    if metric["direction"] not in DIRECTIONS:
        problems.append(f"{where}: direction={metric['direction']!r}; allowed: {', '.join(DIRECTIONS)}")
    return problems


def _answers_problems(where: str, answers: list) -> list[str]:
    for index, answer in enumerate(answers):
        missing = [key for key in ANSWER_KEYS if key not in answer]
        if missing:
            return [f"{where}: answers[{index}] is missing {', '.join(missing)}"]
    return []


def _privacy_problems(where: str, privacy: Any, kind: str = "privacy") -> list[str]:
    if privacy is None:
        return []
    if not isinstance(privacy, dict) or any(not isinstance(privacy.get(key), dict) for key in ("settings", "metrics")):
        return [f"{where}: `{kind}` needs `settings` and `metrics`"]
    return [p for name, m in privacy["metrics"].items() for p in _metric_problems(f"{where} {kind} {name}", m)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
