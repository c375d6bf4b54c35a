# SPDX-License-Identifier: Apache-2.0
"""Runs that were logged to Weights & Biases, by their summaries, in the form that sweeps are reported from."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from .collect import LOSSES, SWEEP_VERSION, variant_of
from .worker import TARGET_TAG


# Trainer's tracker writes `eval_forget/rouge` as this and the rest.
EVALUATED, SECONDS = "eval/", "train_runtime"
PLACES = {"output_dir", "run_name", "logging_dir", "seed", "data_seed", "hub_model_id", "hub_token", "project"}


def collect_wandb(project: str, client: Any = None) -> dict[str, Any]:
    """Reads the summaries of a project's runs: what was logged last of every metric, without intervals.

    Runs belong together by their group (the recipe's name, if a sweep started them), and differ by the settings that
    vary within it.

    Args:
        project (`str`): `entity/project`.
        client (*optional*): has `runs(project)`; by default `wandb.Api()`.

    Returns:
        `dict`: the content of a `sweep.json`.

    Raises:
        `ValueError`: if wandb is not installed, or the project has no runs.
    """
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", project):
        raise ValueError(f"--from_wandb {project!r}; give ENTITY/PROJECT.")
    found = list((client or _api()).runs(project))
    if not found:
        raise ValueError(f"--from_wandb {project}: there are no runs.")
    finished = [run for run in found if run.state == "finished"]
    runs = _with_settings([_run(run) for run in finished])
    kept, repeated = _once_each(runs)
    missing = [
        {"name": run.name, "label": _label(run), "why": f"is {run.state}"} for run in found if run not in finished
    ]
    return {
        "sweep_version": SWEEP_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {
            "name": project,
            "select": {"kind": "last", "bound": None, "forget": None, "utility": None},
            "tuning_seed": None,
            "metrics": None,
            "retrained_seconds": None,
        },
        "swept": list(dict.fromkeys(field for run in kept for field in run["setting"])),
        "planned": len(found),
        "runs": kept,
        "baselines": [],
        "missing": [*missing, *repeated],
    }


def _api():
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "--from_wandb needs the package wandb, which is not installed: `pip install wandb`."
        ) from None
    return wandb.Api()


def _run(run: Any) -> dict[str, Any]:
    config = dict(run.config)
    metrics = dict(_metrics({key: run.summary[key] for key in run.summary.keys()}))  # noqa: SIM118
    seconds = run.summary.get(f"train/{SECONDS}")
    targets = [tag.removeprefix(TARGET_TAG) for tag in run.tags if tag.startswith(TARGET_TAG)]
    plain = {key: value for key, value in config.items() if isinstance(value, (int, float, str))}
    return {
        "name": f"{run.name} ({run.id})",
        "id": run.id,
        "label": _label(run),
        "method": config.get("method") or _label(run),
        "tags": [tag for tag in run.tags if not tag.startswith(TARGET_TAG)],
        "seed": config.get("seed"),
        "tuning": False,
        "target": next(iter(targets), None),
        "dataset": None,
        "model": config.get("_name_or_path"),
        "fields": plain,
        "seconds": seconds if isinstance(seconds, (int, float)) else None,
        "metrics": metrics,
        "values": {name: metric["value"] for name, metric in metrics.items()},
        "points": [],
        "rounds": [],
        "privacy": None,
    }


def _label(run: Any) -> str:
    """The group; without one, the name up to its seed."""
    return run.group or re.sub(r"[-_]?seed[-_=]?\d+$", "", run.name) or run.name


def _metrics(summary: Mapping[str, Any]) -> Iterable[tuple[str, dict]]:
    for key, value in summary.items():
        name = key.removeprefix(EVALUATED)
        name = LOSSES.get(f"eval_{name}", name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if key.startswith(EVALUATED) and ("/" in name or name == "model_utility"):
            role = name.split("/")[0].split("_")[0]
            direction = {"forget": "lower", "retain": "higher", "model": "higher"}.get(role, "none")
            value = value if number else None
            yield name, {"value": value, "n": None, "interval": None, "direction": direction, "variant": None}


def _with_settings(runs: list[dict]) -> list[dict]:
    """Gives every run the fields that vary within its group."""
    for run in runs:
        group = [other["fields"] for other in runs if other["label"] == run["label"]]
        names = dict.fromkeys(name for fields in group for name in fields if name not in PLACES)
        varied = [name for name in names if any(fields.get(name) != group[0].get(name) for fields in group)]
        run["setting"] = {name: run["fields"].get(name) for name in varied}
        run["variant"] = variant_of(run["setting"])
    return runs


def _once_each(runs: list[dict]) -> tuple[list[dict], list[dict]]:
    """Runs, and those that say to be another again: two names for one thing would silently count once."""
    kept: dict[tuple, dict] = {}
    repeated = []
    for run in runs:
        first = kept.setdefault((run["label"], run["variant"], run["seed"], run["target"]), run)
        if first is not run:
            why = f"same method, setting, seed and target as {first['name']}"
            repeated.append({"name": run["name"], "label": run["label"], "why": why})
    return list(kept.values()), repeated
