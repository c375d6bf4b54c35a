# SPDX-License-Identifier: Apache-2.0
"""THRESHOLDS.yaml: gates by name, read strictly."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...yaml_file import load_yaml
from ..naming import LABELS, MEANINGS, PERCENT, is_p_value
from ..sections import audit_metrics
from .numbers import PRIVACY, span


KEYS = ("metric", "against", "at_most", "at_least", "within", "optional")
AGAINST = ("retrained", "target")
# `*` stands for every attack in turn.
ALL_ATTACKS = f"{PRIVACY}*/"
# What every audit of robustness has, whichever are made.
REMAINING = "/remaining"
ATTACK = re.compile(r"privacy/[^/]+/(auc|retain_auc|tpr_zero_fp|tpr@\d+(\.\d+)?e-\d+(/lower|/both)?)")
SETS = {"forget", "retain", "test", "holdout", "general", "real_authors", "world_facts"}
SETS |= {f"{name}_paraphrased" for name in SETS}
FOLDER = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True)
class Gate:
    """Bounds of a metric, or of its difference to another model's.

    Args:
        name (`str`), metric (`str`):
            What the gate is called; what it is about, such as `"forget/accuracy"` or `"privacy/loss/auc"`.
        against (`str`, *optional*):
            `"retrained"` or `"target"`: whose metric is subtracted.
        low (`float`), high (`float`):
            Bounds, which are within; infinite where there is none.
        optional (`bool`):
            Whether a model that was not audited so at all is passed over; otherwise the gate is missing there.
    """

    name: str
    metric: str
    against: str | None
    low: float
    high: float
    optional: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether it is about every metric of further audits whose name fits, and not of attacks on privacy."""
        return "*" in self.metric and not self.metric.startswith(PRIVACY)

    def to_dict(self) -> dict[str, Any]:
        """The gate as JSON holds it."""
        bounds = {"at_least": self.low, "at_most": self.high}
        finite = {key: value for key, value in bounds.items() if math.isfinite(value)}
        about = {"metric": self.metric, **({} if self.against is None else {"against": self.against}), **finite}
        return about | ({"optional": True} if self.optional else {})


def default_thresholds(report: dict) -> Path:
    """The shipped thresholds for a report: a classifier's where it has `forget/accuracy`, else a language model's."""
    classifier = any("forget/accuracy" in model["metrics"] for model in report["models"])
    return FOLDER / f"gates_{'classifier' if classifier else 'language'}.yaml"


def load_gates(path: str | Path) -> list[Gate]:
    """Reads gates from a file.

    Raises:
        `ValueError`: for no such file, no YAML, or what [`read_gates`] refuses; it names the file.
    """
    path = Path(path)
    content = load_yaml(path, f"No thresholds at {str(path)!r}. Shipped ones: {', '.join(map(str, _shipped()))}.")
    try:
        return read_gates(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_gates(content: Any) -> list[Gate]:
    """Gates of the content of a file: `name: {metric: ..., against: ..., at_most: ..., at_least: ..., within: ...}`.

    `within: x` stands for `at_least: -x` and `at_most: x` of a difference.

    Raises:
        `ValueError`: for unknown keys and values, and for bounds that nothing can pass or everything does.
    """
    if not isinstance(content, dict) or not content:
        raise ValueError("No gates. Write `name: {metric: forget/accuracy, against: retrained, within: 0.05}` lines.")
    return [_gate(str(name), about) for name, about in content.items()]


def check_names(gates: list[Gate], report: dict, privacy: dict | None, kinds: Iterable[str] = ()) -> None:
    """Refuses metrics that neither these reports have nor any could.

    Raises:
        `ValueError`: naming the close ones that are there.
    """
    there = {name for model in report["models"] for name in model["metrics"]}
    there |= {f"{PRIVACY}{name}" for model in (privacy or {"models": []})["models"] for name in model["metrics"]}
    audited = {name for model in report["models"] for name in audit_metrics(model)}
    there |= audited
    kinds, made = {*kinds} - {PRIVACY.rstrip("/")}, {name.split("/")[0] for name in audited}
    metrics = {*LABELS, *MEANINGS, *PERCENT}
    for gate in gates:
        head, _, tail = gate.metric.rpartition("/")
        could = tail in metrics and (head in SETS or not head) or ATTACK.fullmatch(gate.metric)
        # Of an audit that was made another metric is a mistake, but for what is shipped for every setting of it.
        could = could or gate.metric.split("/")[0] in (kinds if gate.optional else kinds - made)
        # Where it is not known which audits there are, every name of what is left may be one.
        could = could or ((gate.is_pattern or not kinds) and gate.metric.endswith(REMAINING))
        could = could or (gate.is_pattern and fitting(gate.metric, audited))
        if gate.metric not in there and not could:
            near = get_close_matches(gate.metric, there, n=3) or sorted(there)[:3]
            raise ValueError(f"Gate {gate.name!r}: no metric is called {gate.metric!r}. Close: {', '.join(near)}.")


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """The names of further audits' metrics that a pattern such as `*/probability/remaining` fits; `*` stands for any
    part of a name."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _gate(name: str, about: Any) -> Gate:
    where = f"Gate {name!r}"
    if not isinstance(about, dict) or not isinstance(about.get("metric"), str):
        raise ValueError(f"{where} needs `metric: NAME`, such as `forget/accuracy`, and bounds.")
    for key in about:
        if key not in KEYS:
            near = get_close_matches(str(key), KEYS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(KEYS)}."
            raise ValueError(f"{where}: unknown key {key!r}. {hint}")
    metric, against = about["metric"], about.get("against")
    if "against" in about and against not in AGAINST:
        allowed = f"allowed: {', '.join(AGAINST)}, or leave it out to hold the value itself"
        raise ValueError(f"{where}: against={against!r}; {allowed}.")
    optional = about.get("optional", False)
    if not isinstance(optional, bool):
        raise ValueError(f"{where}: optional={optional!r}; give true or false.")
    if optional and "*" in metric.split("/")[0]:
        # A misspelt metric would be passed over for ever.
        raise ValueError(f"{where}: {metric} names no audit, so none is left out. Take `optional` away or name one.")
    if is_p_value(metric):
        raise ValueError(f"{where}: {metric} is a p-value, which has no interval. Hold the metric behind it instead.")
    if metric.endswith("/vs_retrained"):
        raise ValueError(f"{where}: {metric} is a difference. Hold {metric[:-13]!r} `against: retrained`.")
    low, high = _bounds(where, about)
    least, most = span(metric)
    if against is not None:
        least, most = least - most, most - least
    if low <= least and most <= high:
        raise ValueError(f"{where}: bounds of {low:g} to {high:g} let everything pass.")
    if max(low, least) >= min(high, most):
        raise ValueError(f"{where}: no interval fits between its bounds, so that nothing could pass.")
    return Gate(name, metric, against, low, high, optional)


def _bounds(where: str, about: dict) -> tuple[float, float]:
    given = {key: about[key] for key in ("at_most", "at_least", "within") if key in about}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}: {key}={value!r} is no number.")
    if not given or ("within" in given and len(given) > 1):
        raise ValueError(f"{where}: give `within`, or `at_most`, `at_least` or both.")
    if "within" not in given:
        return given.get("at_least", -math.inf), given.get("at_most", math.inf)
    if "against" not in about:
        raise ValueError(f"{where}: `within` is of a difference. Add `against: retrained` or `against: target`.")
    return -given["within"], given["within"]


def _shipped() -> list[Path]:
    return sorted(FOLDER.glob("gates_*.yaml"))
