# SPDX-License-Identifier: Apache-2.0
"""What came of requests: from their runs' reports to one structure, `requests.json`."""

from datetime import datetime, timezone
from typing import Any

from ..data.sets import PARAPHRASED
from ..report.naming import first_of_kind
from ..report.requests.write import REQUESTS_VERSION
from ..report.schema import json_ready
from ..report.sections import audit_metrics
from ..report.verdict import forget_metric, utility_metric
from .expand import Run
from .progress import DONE, report_of, state_of
from .requests import LAST, set_name


FORGET, QUALITY = "forget/", "forget_quality"


def collect_requests(
    runs: list[Run], requests: list[dict[str, Any]], start: str, title: str, command: str | None
) -> dict[str, Any]:
    """Reads the finished runs of requests.

    Args:
        runs (`list[Run]`), requests (`list[dict]`): of [`~hf_unlearn.sweep.requests.plan_requests`].
        start (`str`): what each run starts from.
        title (`str`), command (`str`, *optional*): for the report.

    Returns:
        `dict`: the content of `requests.json`: `requests`; `steps`, of which the first is the model before any
            request; and the `retrained` model. `groups` has metrics of each request's rows, `kept` all others.
    """
    reports = {number: report_of(run) for number, run in enumerate(runs)}
    done = {number: report for number, report in reports.items() if report is not None}
    steps, retrained = [], None
    for number, report in done.items():
        models = {kind: first_of_kind(report, kind) for kind in ("target", "retrained", "unlearned")}
        parts = {kind: _parts(model, requests, number, start) for kind, model in models.items() if model is not None}
        if not steps and "target" in parts:
            steps.append({"step": 0, "request": None, "seconds": None, **parts["target"]})
        elif start != LAST and steps and "target" in parts:
            steps[0]["groups"] |= parts["target"]["groups"]
        seconds = (models["unlearned"].get("train") or {}).get("seconds")
        steps.append({
            "step": number + 1, "request": requests[number]["id"], "seconds": seconds, **parts["unlearned"],
        })  # fmt: skip
        if "retrained" in parts:
            # Of each request the rows are the same in every run; what is kept may differ between splits.
            groups = {} if retrained is None else retrained["groups"]
            retrained = {**parts["retrained"], "groups": groups | parts["retrained"]["groups"]}
    first = next(iter(done.values()), None)
    return json_ready({
        "requests_version": REQUESTS_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "title": title,
        "command": command,
        "start": start,
        "requests": requests,
        "forget": None if first is None else forget_metric(first).removeprefix(FORGET),
        "utility": None if first is None else utility_metric(first),
        "steps": steps,
        "retrained": retrained,
        "missing": [requests[number]["id"] for number, report in reports.items() if report is None],
    })  # fmt: skip


def check_chain(runs: list[Run]) -> None:
    """Refuses results that were made from a result that is no longer there.

    Raises:
        `ValueError`: naming the first of them.
    """
    open_ = None
    for run in runs:
        if state_of(run) != DONE:
            open_ = open_ or run
        elif open_ is not None:
            raise ValueError(
                f"{str(run.folder)!r} is done and {str(open_.folder)!r}, from whose result it began, is not: it was "
                "made from an earlier one. Delete it and those after it, or give another `--output_dir`."
            )


def _parts(model: dict[str, Any], requests: list[dict[str, Any]], number: int, start: str) -> dict[str, Any]:
    """A model's metrics: of each request's rows, by its id, and the others."""
    ids = [request["id"] for request in requests]
    sets = {"forget": ids[number]}
    if start == LAST:
        sets |= {set_name(ids, other, number): other for other in ids if other != ids[number]}
    groups, kept = {name: {} for name in sets.values()}, {}
    for name, metric in (model["metrics"] | audit_metrics(model)).items():
        rows, _, own = name.rpartition("/")
        if rows in sets:
            groups[sets[rows]][own] = metric
        elif name == QUALITY:
            groups[ids[number]][name] = metric
        elif rows.removesuffix(PARAPHRASED) not in sets:
            kept[name] = metric
    return {"groups": groups, "kept": kept}
