# SPDX-License-Identifier: Apache-2.0
"""Runs of a sweep as `sweep.json` has them, and the mean of their values the slow way."""

import numpy as np
from scipy import stats

from hf_unlearn.report.sweep.rules import read_rule


FORGET, UTILITY = "forget/exact_match", "model_utility"
FPRS = [0.01, 0.1]


def metric(value, direction="lower"):
    interval = None if value is None else [value - 0.1, value + 0.1]
    return {"value": value, "n": 32, "interval": interval, "direction": direction, "variant": None}


def attacked(value: float, seed: int = 0) -> dict:
    """What attacks found: the rate 1e-1 is resolved, 1e-2 is not."""
    rng = np.random.default_rng(seed)
    found = {}
    for attack in ("loss", "worst"):
        details = {"status": "resolved", "achieved_fpr": 0.125, "chance": 0.1, "threshold": 0.5}
        found[f"{attack}/tpr@1e-1"] = {**metric(value), "details": details}
        details = {"status": "unresolved", "n_calibration": 32, "needs_calibration": 99}
        found[f"{attack}/tpr@1e-2"] = {**metric(None), "details": details}
    found["loss/auc"] = {**metric(0.6), "details": {}}
    scores = {"loss": {"forget": rng.normal(1, 1, 32).tolist(), "nonmember": rng.normal(0, 1, 64).tolist()}}
    settings = {"n": {"forget": 32, "nonmember": 64, "retain": None}, "fprs": FPRS, "attacks": ["loss"]}
    return {"metrics": found, "scores": scores, "settings": settings}


def run_of(label, forget, utility, seed=0, target=None, setting=None, points=(), privacy=None, seconds=10.0, **more):
    setting = setting or {}
    return {
        "name": f"{label}-{setting}-{target}-{seed}",
        "id": "abc",
        "label": label,
        "method": label,
        "variant": " ".join(f"{key}={value}" for key, value in setting.items()),
        "setting": setting,
        "tags": [],
        "seed": seed,
        "tuning": False,
        "target": target,
        "dataset": "world",
        "model": "m",
        "fields": {"alpha": 0.5, **setting},
        "seconds": seconds,
        "resumed": False,
        "metrics": {FORGET: metric(forget), UTILITY: metric(utility, "higher")},
        "values": {FORGET: forget, UTILITY: utility},
        "points": [{"step": step, "values": {FORGET: f, UTILITY: u}} for step, f, u in points],
        "rounds": [],
        "privacy": privacy,
        **more,
    }


def baseline(kind, forget, utility, target=None):
    metrics = {FORGET: metric(forget), UTILITY: metric(utility, "higher")}
    about = {"kind": kind, "path": "m" if kind == "target" else kind, "target": target, "dataset": "world"}
    return {**about, "metrics": metrics, "privacy": None, "disagrees": []}


def sweep_of(runs, baselines=None, select="last", tuning_seed=None, missing=(), **settings):
    for run in runs:
        run["tuning"] = run["seed"] == tuning_seed
    rule = read_rule(select, "test").to_dict()
    about = {"name": "test", "select": rule, "tuning_seed": tuning_seed, "metrics": None, "retrained_seconds": None}
    return {
        "sweep_version": 1,
        "created": "2026-01-01",
        "settings": {**about, **settings},
        "swept": list(dict.fromkeys(key for run in runs for key in run["setting"])),
        "planned": len(runs) + len(missing),
        "runs": runs,
        "baselines": [baseline("target", 1.0, 0.9), baseline("retrained", 0.0, 0.9)]
        if baselines is None
        else baselines,
        "missing": list(missing),
    }


def slow_mean(values: dict) -> tuple:
    """Mean over targets of means over seeds, sd over seeds of the targets that all have, t-interval over targets."""
    known = {key: value for key, value in values.items() if value is not None}
    targets, seeds = sorted({t for t, _ in known}), sorted({s for _, s in known})
    means = [np.mean([v for (t, _), v in known.items() if t == target]) for target in targets]
    complete = [t for t in targets if all((t, s) in known for s in seeds)]
    per_seed = [np.mean([known[t, s] for t in complete]) for s in seeds] if complete else []
    sd = np.std(per_seed, ddof=1) if len(per_seed) > 1 else None
    over = means if len(means) > 1 else per_seed
    if len(over) > 1:
        low, high = stats.t.interval(0.95, len(over) - 1, loc=np.mean(over), scale=stats.sem(over))
    else:
        low = high = None
    return np.mean(means), sd, low, high
