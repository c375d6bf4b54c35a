# SPDX-License-Identifier: Apache-2.0
"""A run held against thresholds: each gate is passed, failed, unresolved or missing, for each unlearned model.

A gate is passed only where the whole 95% interval lies within its bounds, failed only where all of it lies outside. In
between the sample does not tell, and what was not measured is never passed.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..likeness import unlike, unlike_attack, unlike_settings
from ..naming import first_of_kind, metric_in, of_kind
from ..sections import as_audited, audit_metrics
from .numbers import Number, difference, number
from .spec import ALL_ATTACKS, PRIVACY, Gate, check_names, fitting


GATES_SCHEMA = 1
PASSED, FAILED, UNRESOLVED, MISSING = "passed", "failed", "unresolved", "missing"
# An optional gate on an audit that was not made is missing, and decides nothing.
NOT_MADE = "no such audit; optional"
# What a gate over all attacks says of the worst of them, and what all gates say of a model.
WORST_FIRST = (FAILED, MISSING, UNRESOLVED, PASSED)
# A pipeline goes on after the first only.
EXIT_STATUS = {PASSED: 0, FAILED: 1, UNRESOLVED: 3, MISSING: 3}


@dataclass(frozen=True)
class Outcome:
    """One gate held against one model.

    Args:
        gate (`str`), metric (`str`):
            The gate; the metric, of a gate over all attacks the worst attack's.
        status (`str`):
            `"passed"`, `"failed"`, `"unresolved"` or `"missing"`.
        value (`float`, *optional*), interval (`tuple`, *optional*):
            Of the metric, or of its difference to the other model's.
        n (`int`, *optional*):
            Items behind it.
        method (`str`, *optional*):
            How the interval of a difference was made.
        why (`str`, *optional*):
            What keeps the gate from being decided.
    """

    gate: str
    metric: str
    status: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    method: str | None = None
    why: str | None = None


def judge(report: dict, gates: list[Gate], privacy: dict | None = None, kinds: Iterable[str] = ()) -> dict:
    """Holds every unlearned model of a report against the gates.

    Args:
        report (`dict`):
            The content of a `report.json`. Where metrics hold `per_item`, differences are those of the same items.
        gates (`list[Gate]`):
            Of [`~hf_unlearn.report.gates.spec.read_gates`].
        privacy (`dict`, *optional*):
            The content of a `privacy.json`, for gates on attacks. Its models are found by their paths.
        kinds (`Iterable[str]`):
            Audits that a report may hold: `<kind>/<metric>` of one that was not made is missing, not unknown.

    Returns:
        `dict`: the content of `gates.json` less where it came from: `gates`, and `models` with their `status` and
        `outcomes` in the order of the gates.

    Raises:
        `ValueError`: for a metric that no report has, and for a report without an unlearned model.
    """
    unlearned = of_kind(report, "unlearned")
    if not unlearned:
        raise ValueError("The report has no unlearned model to hold against gates.")
    check_names(gates, report, privacy, kinds)
    models = []
    for model in unlearned:
        outcomes = [_outcome(gate, report, model, privacy) for gate in gates]
        decided = [outcome.status for outcome in outcomes if outcome.why != NOT_MADE]
        status = min(decided, key=WORST_FIRST.index, default=MISSING)
        models.append({"name": model["name"], "status": status, "outcomes": [asdict(one) for one in outcomes]})
    return {
        "schema_version": GATES_SCHEMA,
        "status": min((model["status"] for model in models), key=WORST_FIRST.index),
        "gates": {gate.name: gate.to_dict() for gate in gates},
        "models": models,
    }


def _outcome(gate: Gate, report: dict, model: dict, privacy: dict | None) -> Outcome:
    if gate.optional and not _was_made(gate, model, privacy):
        return Outcome(gate.name, gate.metric, MISSING, why=NOT_MADE)
    other = None if gate.against is None else first_of_kind(report, gate.against)
    if gate.against is not None and other is None:
        return Outcome(gate.name, gate.metric, MISSING, why=f"the report has no {gate.against} model")
    if gate.metric.startswith(PRIVACY):
        if privacy is None:
            return Outcome(gate.name, gate.metric, MISSING, why="no privacy.json")
        attacked = [_attacked(one, privacy) for one in (model, other) if one is not None]
        if None in attacked:
            return Outcome(gate.name, gate.metric, MISSING, why="this model or the other is not in privacy.json")
        outcomes = [_held(gate, name, *attacked) for name in _names(gate.metric, attacked[0])]
    else:
        names = fitting(gate.metric, audit_metrics(model)) if gate.is_pattern else [gate.metric]
        outcomes = [_of_audit(gate, name, model, other) for name in names]
    if not outcomes:
        return Outcome(gate.name, gate.metric, MISSING, why="no attack was tried")
    return min(outcomes, key=lambda one: (WORST_FIRST.index(one.status), -_excess(gate, one)))


def _was_made(gate: Gate, model: dict, privacy: dict | None) -> bool:
    """Whether a model was audited for what a gate is about."""
    if gate.metric.startswith(PRIVACY):
        return privacy is not None
    kind, metrics = gate.metric.split("/")[0], model["metrics"]
    return as_audited(model, kind) is not None or any(name.startswith(f"{kind}/") for name in metrics)


def _of_audit(gate: Gate, name: str, model: dict, other: dict | None) -> Outcome:
    """One metric of a report, its own or a further audit's, held against the bounds."""
    kind = name.split("/")[0]
    if name not in model["metrics"] and as_audited(model, kind) is not None:
        model, other = as_audited(model, kind), None if other is None else as_audited(other, kind)
        if gate.against is not None and other is None:
            return Outcome(gate.name, name, MISSING, why=f"{gate.against}: not measured")
    return _held(gate, name, model, other)


def _held(gate: Gate, name: str, model: dict, other: dict | None = None) -> Outcome:
    """One metric of one model, held against the bounds."""
    mine = metric_in(model, name)
    if why := _lack(mine):
        # An audit that was made and cannot tell says why.
        status = MISSING if _reason(mine) is None else UNRESOLVED
        return Outcome(gate.name, name, status, n=mine and mine["n"], why=why)
    if other is None:
        found = number(mine)
    else:
        paired = metric_in(model, f"{name}/vs_retrained") if gate.against == "retrained" else None
        theirs = metric_in(other, name)
        if why := _lack(theirs):
            return Outcome(gate.name, name, MISSING, why=f"{gate.against}: {why}")
        if why := _unlike(name, model, other):
            return Outcome(gate.name, name, MISSING, why=f"{gate.against}: {why}")
        found = difference(name, mine, theirs, paired)
    status, why = _status(gate, found)
    unknown = (mine.get("details") or {}).get("open")
    if status == PASSED and unknown:
        status, why = UNRESOLVED, f"{', '.join(unknown)} may be worse and cannot be told"
    return Outcome(gate.name, name, status, found.value, found.interval, found.n, found.method, why)


def _unlike(name: str, model: dict, other: dict) -> str | None:
    """How a metric of two models differs in what it measures."""
    if not name.startswith(PRIVACY):
        differs = unlike_settings(model.get("audited"), other.get("audited"))
        return differs or unlike(metric_in(model, name), metric_in(other, name))
    attack = name.removeprefix(PRIVACY).split("/")[0]
    return unlike_attack(attack, model["settings"], other["settings"])


def _status(gate: Gate, found: Number) -> tuple[str, str | None]:
    if found.interval is None:
        return UNRESOLVED, "no interval"
    low, high = found.interval
    if gate.low <= low and high <= gate.high:
        return PASSED, None
    if high < gate.low or gate.high < low:
        return FAILED, None
    return UNRESOLVED, f"the interval is {high - low:.2g} wide"


def _lack(metric: dict | None) -> str | None:
    if metric is None:
        return "not measured"
    if metric["value"] is not None:
        return None
    details = metric.get("details") or {}
    if (reason := _reason(metric)) is not None:
        return reason
    if details.get("status") == UNRESOLVED:
        return f"{details['n_calibration']} of {details['needs_calibration']} non-members that the rate needs"
    return "undefined"


def _reason(metric: dict | None) -> str | None:
    return None if metric is None else (metric.get("details") or {}).get("reason")


def _attacked(model: dict, privacy: dict) -> dict | None:
    """A report's model as attacks found it, its metrics under the names that gates use."""
    if model["kind"] == "retrained":
        found = first_of_kind(privacy, "retrained")
    else:
        found = next((one for one in of_kind(privacy, "attacked") if _same(one["path"], model["path"])), None)
    return found and {**found, "metrics": {f"{PRIVACY}{name}": metric for name, metric in found["metrics"].items()}}


def _same(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and (one == other or Path(one).resolve() == Path(other).resolve())


def _names(metric: str, attacked: dict) -> list[str]:
    """The metric itself, or for all attacks each one's."""
    if not metric.startswith(ALL_ATTACKS):
        return [metric]
    rest = metric.removeprefix(ALL_ATTACKS)
    return [f"{PRIVACY}{attack}/{rest}" for attack in attacked["scores"]]


def _excess(gate: Gate, outcome: Outcome) -> float:
    """How far an interval reaches beyond the bounds."""
    if outcome.interval is None:
        return 0.0
    low, high = outcome.interval
    return max(high - gate.high, gate.low - low)
