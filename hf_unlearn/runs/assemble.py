# SPDX-License-Identifier: Apache-2.0
"""From audits and a training log to the dict that a report is drawn from."""

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from ..audit import Audit
from ..audit.registry import AUDITS
from ..report import SCHEMA_VERSION
from ..report.likeness import check_alike
from ..report.sections import AUDITS_KEY, as_audited
from ..versions import versions
from .audits import sections_of


if TYPE_CHECKING:
    from transformers import TrainerState

NOTES = (
    (
        "Intervals are 95 %: exact (Clopper-Pearson) for shares, bootstrap over items for means. They cover the "
        "choice of items, not the choice of seed."
    ),
    "A model that answers nothing right forgets perfectly; read what was forgotten beside what was kept.",
    (
        "Forgetting is judged against the model that never saw the forget rows. Answers that are gone here may come "
        "back under other prompts, after further training or quantisation; none of that was tried."
    ),
)
NO_RETRAINED = (
    "No retrained model was given, so forget quality is missing and low values have nothing to be held against."
)


def model_entry(name: str, kind: str, audit: Audit, path=None, method: str | None = None, train=None) -> dict:
    """One model of a report."""
    return {
        "name": name,
        "kind": kind,
        "method": method,
        "path": None if path is None else str(path),
        "metrics": {metric: result.to_dict() for metric, result in audit.metrics.items()},
        "answers": audit.answers,
        "train": train,
        # What the numbers depend on besides the model, to know what they compare with.
        "audited": audit.settings,
    }


def training_entry(state: "TrainerState", seconds: float, processes: int) -> dict:
    """How a model was trained: time, arithmetic, steps, processes and the losses of forget and retain rows on the way.

    The losses are those of evaluations on fixed rows where there were any, else those of the training batches.
    """
    curve: dict[int, dict] = {}
    for sources in (("eval_forget_loss", "eval_retain_loss"), ("forget/nll", "retain/nll")):
        for entry in state.log_history:
            for source, name in zip(sources, ("forget/loss", "retain/loss"), strict=True):
                if source in entry:
                    curve.setdefault(entry["step"], {"step": entry["step"]})[name] = entry[source]
        if curve:
            break
    points = [curve[step] for step in sorted(curve)]
    return {
        "seconds": round(seconds, 2),
        "flops": state.total_flos or None,
        "steps": state.global_step,
        "processes": processes,
        "curve": points,
    }


def assemble(title: str, suite: str, models: list[dict], settings: dict, command=None, notes=()) -> dict:
    """The content of `report.json`."""
    kinds = {model["kind"] for model in models}
    sections = sections_of(models)
    return {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "suite": suite,
        "settings": settings,
        "versions": versions(),
        "models": models,
        **({"sections": sections} if sections else {}),
        "notes": [*notes, *NOTES, *([] if "retrained" in kinds else [NO_RETRAINED])],
    }


def merge(reports: list[dict], title: str) -> dict:
    """One report over several runs; models of the same name and path are shown once.

    Raises:
        `ValueError`: if two runs share a name, or audited different suites, sets or rows, or by other definitions.
    """
    suites = {report["suite"] for report in reports}
    if len(suites) > 1:
        raise ValueError(f"The runs audited different suites ({', '.join(sorted(suites))}); report them apart.")
    models: dict[str, dict] = {}
    for model in (model for report in reports for model in report["models"]):
        known = models.setdefault(model["name"], model)
        if model.get("privacy"):
            known.setdefault("privacy", model["privacy"])
        if model.get(AUDITS_KEY):
            known[AUDITS_KEY] = {**model[AUDITS_KEY], **known.get(AUDITS_KEY, {})}
        if known["path"] != model["path"]:
            raise ValueError(
                f"Two runs have a model called {model['name']!r}: {known['path']} and {model['path']}. Give them "
                "different `run_name`s."
            )
        sizes = [{name: metric["n"] for name, metric in one["metrics"].items()} for one in (known, model)]
        if any(sizes[0][name] != sizes[1][name] for name in sizes[0].keys() & sizes[1].keys()):
            raise ValueError(
                f"Two runs audited {model['name']!r} on sets of different sizes: their numbers cannot be compared. "
                "Report them apart."
            )
    check_alike(model for report in reports for model in report["models"])
    for kind in AUDITS:
        found = (as_audited(model, kind) for report in reports for model in report["models"])
        check_alike(model for model in found if model is not None)
    order = {"target": 0, "retrained": 1, "unlearned": 2}
    notes = list(dict.fromkeys(note for report in reports for note in report["notes"]))
    settings = {name: values for report in reports for name, values in report["settings"].items()}
    merged = assemble(title, suites.pop(), sorted(models.values(), key=lambda m: order[m["kind"]]), settings)
    return {**merged, "notes": notes}
