# SPDX-License-Identifier: Apache-2.0
"""Means over seeds and targets. What is missing is left out and counted, and never counts as 0."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ..naming import KEY_METRICS, is_percent, metric_of
from ..privacy.view import fpr_name
from ..verdict import forget_metric, utility_metric
from .rules import Point, Rule, Selection, select


SECONDS = "seconds"
# Counted arithmetic of training, in 10^12 operations: the same on a busy machine.
TERAFLOP = "teraflop"
COSTS = (SECONDS, TERAFLOP)
PRIVACY = "privacy/"
RETRAIN = "retrain"
# Of baselines: the model that retraining starts from. No row shows it.
START = "start"
UNRESOLVED = "unresolved"
# Accuracy is what classifiers have in place of answers.
ALSO_MAIN = "accuracy"
# From 0 to 1 though not shown in percent.
ALSO_SHARES = (ALSO_MAIN, "model_utility", "forget_quality")


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    Args:
        mean (`float`, *optional*): over targets of their means over seeds; `None` where no run has a value.
        sd (`float`, *optional*): over seeds, of the means over those targets that every seed has (divisor n - 1).
        low, high (`float`, *optional*): 95 % t-interval of the mean, over targets where there are several, else over
            seeds; of shares, cut off at 0 and 1.
        n_seeds, n_targets, n (`int`): with a value; `n` counts runs.
        missing (`int`): runs without one.
        unresolved (`int`): those of them whose rows are too few for the rate.
    """

    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    n_seeds: int = 0
    n_targets: int = 0
    n: int = 0
    missing: int = 0
    unresolved: int = 0


@dataclass
class Row:
    """A line of a table.

    Args:
        kind (`str`): `target` or `retrained` (models that were there before), `result`, or `tuning`.
        label, method, variant (`str`): recipe's name, method, and what varies.
        step (`int`, *optional*): where a rule chose an evaluation on the way.
        points (`list[Point]`): what it is a mean of.
        cells (`dict[str, Cell]`): by metric.
    """

    kind: str
    label: str
    method: str
    variant: str
    step: int | None
    points: list[Point] = field(repr=False)
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in figures."""
        step = "" if self.step is None else f"step {self.step}"
        return " ".join(part for part in (self.label, self.variant, step) if part)


@dataclass
class Table:
    """All rows of a sweep under its rule.

    Args:
        rows (`list[Row]`): baselines, results, then those of the tuning seed.
        metrics (`list[str]`): main ones, in order.
        forget, utility (`str`, *optional*): what the rule and the figures read.
        rule (`str`): in words.
        unmet (`list[str]`): where nothing met it.
        retrained_seconds (`float`, *optional*): what training without the forget rows took.
    """

    rows: list[Row]
    metrics: list[str]
    forget: str | None
    utility: str | None
    rule: str
    unmet: list[str]
    retrained_seconds: float | None

    def of(self, *kinds: str) -> list[Row]:
        return [row for row in self.rows if row.kind in kinds]


def tabulate(sweep: dict[str, Any]) -> Table:
    """Selects by the sweep's rule and takes means.

    Args:
        sweep (`dict`): the content of `sweep.json`.

    Raises:
        `ValueError`: if the rule cannot be applied, reads a metric that no run has, or a column would hold two metrics
            of one name.
    """
    rule, forget, utility, selection = selection_of(sweep)
    rows = [*_baseline_rows(sweep), *_result_rows(selection, rule)]
    metrics = main_metrics(sweep, forget, utility)
    _check_definitions(sweep, metrics)
    for row in rows:
        row.cells = {name: cell_of(row.points, name) for name in (*metrics, SECONDS)}
    told = rule.told(forget, utility)
    return Table(rows, metrics, forget, utility, told, selection.unmet, _retrained_seconds(sweep))


def selection_of(sweep: dict[str, Any]) -> tuple[Rule, str | None, str | None, Selection]:
    """The sweep's rule, the metrics that it reads, and what it selects.

    Raises:
        `ValueError`: see [`tabulate`].
    """
    rule = Rule(**sweep["settings"]["select"])
    forget, utility = _axes(sweep, rule)
    return rule, forget, utility, _selected(sweep, rule, forget, utility)


def _check_definitions(sweep: dict[str, Any], metrics: list[str]) -> None:
    """Refuses a column of numbers by two definitions. (Rows differ between targets, which are averaged over.)"""
    for name in metrics:
        found: dict[Any, str] = {}
        for one in (*sweep["runs"], *sweep["baselines"]):
            if name.startswith(PRIVACY) and one["privacy"]:
                tried = f"best of {', '.join(one['privacy']['settings']['attacks'])}"
                found.setdefault(tried, one.get("name") or f"the {one['kind']} model")
            if name in one["metrics"]:
                # What follows names the sets that were joined: a target may lack one.
                variant = (one["metrics"][name]["variant"] or "").split(";")[0]
                found.setdefault(variant, one.get("name") or f"the {one['kind']} model")
        if len(found) > 1:
            told = " and ".join(f"{variant!r} ({who})" for variant, who in found.items())
            raise ValueError(
                f"{name} is two metrics in this sweep: {told}. Name other `metrics`, or report these runs apart."
            )


def cell_of(points: list[Point], metric: str) -> Cell:
    """One metric over runs that differ in seed and target."""
    values = {(p.run["target"], p.run["seed"]): p.values.get(metric) for p in points}
    unresolved = sum(metric in p.run.get("unresolved", ()) for p in points)
    cell = mean_of(values, unresolved)
    if cell.low is None or not is_share(metric):
        return cell
    return replace(cell, low=max(cell.low, 0.0), high=min(cell.high, 1.0))


def own_interval(point: Point, metric: str) -> tuple[float, float] | None:
    """The interval that a run's own audit gives, over its items; evaluations on the way have none."""
    if point.step is not None:
        return None
    privacy = (point.run["privacy"] or {}).get("metrics", {})
    found = point.run["metrics"] | {f"{PRIVACY}{name}": one for name, one in privacy.items()}
    interval = found.get(metric, {}).get("interval")
    return None if interval is None else (interval[0], interval[1])


def mean_of(values: dict[tuple, float | None], unresolved: int = 0) -> Cell:
    """The mean of values by (target, seed), see [`Cell`]."""
    known = {key: value for key, value in values.items() if value is not None}
    missing = len(values) - len(known)
    if not known:
        return Cell(None, missing=missing, unresolved=unresolved)
    by_target = _grouped(known, 0)
    target_means = {target: statistics.fmean(found.values()) for target, found in by_target.items()}
    seeds = _grouped(known, 1)
    # A seed that lacks a hard target would seem to do better.
    complete = [target for target, found in by_target.items() if found.keys() == seeds.keys()]
    seed_means = [statistics.fmean(found[t] for t in complete) for found in seeds.values()] if complete else []
    sd = statistics.stdev(seed_means) if len(seed_means) > 1 else None
    over = list(target_means.values()) if len(target_means) > 1 else seed_means
    mean = statistics.fmean(target_means.values())
    low, high = t_interval(over)
    return Cell(mean, sd, low, high, len(seeds), len(target_means), len(known), missing, unresolved)


def t_interval(values: list[float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean of a few values; none for fewer than two, and none for equal ones: its width of 0
    would claim a certainty that they do not give."""
    if len(values) < 2 or max(values) == min(values):
        return None, None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = t_quantile(len(values) - 1) * error
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """How many standard errors a 95 % t-interval reaches to each side."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def main_metrics(sweep: dict, forget: str | None, utility: str | None) -> list[str]:
    """What the table shows: what the sweep names, else the key metrics that there are; and privacy."""
    found = dict.fromkeys(name for one in (*sweep["runs"], *sweep["baselines"]) for name in one["metrics"])
    asked = sweep["settings"].get("metrics")
    if asked is None:
        audits = {name for run in sweep["runs"] for name in run.get("audits", ())}
        also = [name for name in found if name.rsplit("/", 1)[-1] == ALSO_MAIN or name in audits]
        shown = [*(name for name in KEY_METRICS if name in found), *also, forget, utility]
        asked = [name for name in dict.fromkeys(shown) if name is not None]
    elif any(name not in found for name in asked) and found:
        absent = [name for name in asked if name not in found]
        raise ValueError(f"metrics: no run has {', '.join(absent)}. There are: {', '.join(found)}.")
    return [*asked, *privacy_metrics(sweep)]


def privacy_metrics(sweep: dict) -> list[str]:
    """The best attack's TPR at every rate, as `privacy/worst/tpr@1e-3`."""
    fprs = sorted({fpr for run in sweep["runs"] if run["privacy"] for fpr in run["privacy"]["settings"]["fprs"]})
    return [f"{PRIVACY}worst/tpr@{fpr_name(fpr)}" for fpr in fprs]


def cost_text(name: str, value: float) -> str:
    """Seconds with one decimal, arithmetic with three digits."""
    return f"{value:.1f}" if name == SECONDS else f"{value:.3g}"


def points_of(run: dict) -> list[Point]:
    """A run's evaluations on the way and its end."""
    return [*(Point(run, p["step"], p["values"]) for p in run["points"]), Point(_with_gaps(run), None, _values(run))]


def _values(one: dict) -> dict[str, float | None]:
    """All numbers of a run's end or of a baseline, by metric."""
    values = dict(one.get("values") or {name: metric["value"] for name, metric in one["metrics"].items()})
    values |= {name: None for name, metric in one["metrics"].items() if is_open(metric)}
    privacy = (one["privacy"] or {}).get("metrics", {})
    values |= {f"{PRIVACY}{name}": metric["value"] for name, metric in privacy.items()}
    flops = one.get("flops")
    return values | {SECONDS: one.get("seconds"), TERAFLOP: None if flops is None else flops / 1e12}


def _with_gaps(one: dict) -> dict:
    privacy = (one["privacy"] or {}).get("metrics", {})
    open_ = [PRIVACY + name for name, m in privacy.items() if m["details"].get("status") == UNRESOLVED]
    return {**one, "unresolved": [*open_, *(name for name, metric in one["metrics"].items() if is_open(metric))]}


def is_open(metric: dict[str, Any]) -> bool:
    """Whether an audit leaves open how much is left: what it resolved is no bound of what it did not."""
    details = metric.get("details") or {}
    undecided = details.get("verdict") == UNRESOLVED and bool(details.get("open"))
    return undecided or (metric["value"] is None and details.get("status") == UNRESOLVED)


def _axes(sweep: dict, rule: Rule) -> tuple[str | None, str | None]:
    models = [*sweep["baselines"], *({**run, "kind": "unlearned"} for run in sweep["runs"])]
    named = {"models": [{**model, "name": str(i)} for i, model in enumerate(models)]}
    found = {name for model in models for name in (*model["metrics"], *model.get("values", ()))}
    for name in (rule.forget, rule.utility):
        if name is not None and name not in found and models:
            raise ValueError(f"select: no run has {name!r}. There are: {', '.join(sorted(found))}.")
    accuracy = {
        role: f"{role}/{ALSO_MAIN}" if f"{role}/{ALSO_MAIN}" in found else None for role in ("forget", "retain")
    }
    forget = rule.forget or forget_metric(named) or accuracy["forget"]
    return forget, rule.utility or utility_metric(named) or accuracy["retain"]


def _selected(sweep: dict, rule: Rule, forget, utility) -> Selection:
    def of_baseline(kind: str, run: dict, name: str | None) -> float | None:
        for one in sweep["baselines"]:
            own = one["kind"] in (kind, *([START] if kind == "target" else [])) and one["target"] == run["target"]
            if own and (kind == "retrained" or one["path"] == run["model"]):
                return _values(one).get(name)
        return None

    def losses(point: Point) -> tuple[float | None, float | None]:
        mine, kept = point.values.get(forget), point.values.get(utility)
        before, gold = of_baseline("target", point.run, utility), of_baseline("retrained", point.run, forget)
        metric = point.run["metrics"].get(forget) or {"direction": "lower"}
        if mine is not None:
            mine = -mine if metric["direction"] == "higher" else mine if gold is None else abs(mine - gold)
        return mine, None if None in (kept, before) else before - kept

    points = [point for run in sweep["runs"] for point in points_of(run)]
    seed = sweep["settings"]["tuning_seed"]
    return select(rule, points, forget, utility, lambda run: of_baseline("target", run, forget), seed, losses)


def _baseline_rows(sweep: dict) -> list[Row]:
    found: dict[tuple, list[Point]] = {}
    baselines = [one for one in sweep["baselines"] if one["kind"] != START]
    for one in sorted(baselines, key=lambda one: one["kind"] == "retrained"):
        run = {**_with_gaps(one), "seed": None}
        found.setdefault((one["kind"], one["path"]), []).append(Point(run, None, _values(one)))
    several = {kind for kind, _ in found if sum(other == kind for other, _ in found) > 1}
    return [
        Row(kind, f"{kind} ({path})" if kind in several else kind, "", "", None, points)
        for (kind, path), points in found.items()
    ]


def _result_rows(selection: Selection, rule: Rule) -> list[Row]:
    rows: dict[tuple, Row] = {}
    for point in selection.points:
        run = point.run
        kind = "tuning" if run["tuning"] else "result"
        # The first evaluation that meets a bound is another one in each run.
        step = None if rule.kind == "first" else point.step
        key = (kind, run["label"], run["variant"], step)
        row = rows.setdefault(key, Row(kind, run["label"], run["method"], run["variant"], step, []))
        row.points.append(point)
    return sorted(rows.values(), key=lambda row: row.kind == "tuning")


def _retrained_seconds(sweep: dict) -> float | None:
    told = sweep["settings"].get("retrained_seconds")
    if told is not None:
        return told
    known = [
        run["seconds"] for run in sweep["runs"] if run["method"] == RETRAIN and run["seconds"] and not run["tuning"]
    ]
    return statistics.fmean(known) if known else None


def retrains(method: str, fields: dict[str, Any]) -> bool:
    """Whether a run trains on the retain rows alone."""
    return method == RETRAIN and fields.get("train_on", "retain") == "retain"


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    if metric.startswith(PRIVACY):
        return "tpr" in metric or metric.endswith("/auc")
    return is_percent(metric) or metric_of(metric) in ALSO_SHARES


def _grouped(values: dict[tuple, float], place: int) -> dict[Any, dict[Any, float]]:
    groups: dict[Any, dict[Any, float]] = {}
    for key, value in values.items():
        groups.setdefault(key[place], {})[key[1 - place]] = value
    return groups


def targets_of(rows: Iterable[Row]) -> list[str]:
    """Ids of the targets, in order."""
    return list(dict.fromkeys(p.run["target"] for row in rows for p in row.points if p.run["target"] is not None))
