# SPDX-License-Identifier: Apache-2.0
"""What the results of all models say of each audit."""

from collections.abc import Mapping, Sequence
from typing import Any

from .members import IGNORANT, KNOWING, LOCKED, LOCKS
from .scores import may_gate, rank_correlation, separation


HEADLINE, OUTPUT = "worst/remaining", "output"


def summary(
    models: Sequence[Mapping[str, Any]], retests: Mapping[str, Sequence[float]] | None = None
) -> list[dict[str, Any]]:
    """One row for each audit's headline, each metric of the answers, and each further `remaining` of an audit.

    Args:
        models (`list[dict]`): of `meta.json`.
        retests (`dict[str, list[float]]`): audit to the differences of its headline between seeds of its own.
    """
    names = dict.fromkeys(
        (audit, metric) for model in models for audit, found in model["results"].items() for metric in found["metrics"]
    )
    heads = [name for name in names if name[1] == HEADLINE]
    outputs = [name for name in names if name[0] == OUTPUT]
    parts = [name for name in names if name not in heads and name not in outputs]
    return [_row(models, *name, (retests or {}).get(name[0])) for name in (*heads, *outputs, *parts)]


def _row(
    models: Sequence[Mapping[str, Any]], audit: str, metric: str, retest: Sequence[float] | None
) -> dict[str, Any]:
    level = "output" if audit == OUTPUT else "headline" if metric == HEADLINE else "part"
    readings = [(model, model["results"].get(audit, {"metrics": {}})["metrics"].get(metric)) for model in models]

    def of(*pools: str, lock: str | None = None) -> list[dict[str, Any] | None]:
        return [found for model, found in readings if model["pool"] in pools and lock in (None, model["lock"])]

    def scores(*pools: str) -> list[float]:
        return [found["score"] for found in of(*pools) if found is not None and found["score"] is not None]

    told = separation(scores(*KNOWING), scores(*IGNORANT))
    undefined = len(of(*KNOWING, *IGNORANT)) - len(scores(*KNOWING, *IGNORANT))
    alarms = {pool: _alarms(of(pool)) for pool in IGNORANT}
    gate, why = may_gate(told, sum(found["alarms"] for found in alarms.values()), undefined)
    graded = [
        (model["share"], found["score"])
        for model, found in readings
        if model["pool"] in ("P0", "P2", "N0") and found is not None and found["score"] is not None
    ]
    seconds = [model["results"][audit]["seconds"] for model in models if audit in model["results"]]
    return {
        "audit": audit,
        "metric": metric,
        "level": level,
        "separation": told,
        "undefined": undefined,
        "alarms": alarms,
        "found": {pool: _alarms(of(pool)) for pool in KNOWING},
        "locks": {lock: _alarms(of(LOCKED, lock=lock)) for lock in LOCKS},
        "spearman": rank_correlation(*zip(*graded, strict=True)) if graded else None,
        "retest": {"models": len(retest), "largest": max(retest)} if retest and level == "headline" else None,
        "seconds": sum(seconds) / len(seconds) if seconds and None not in seconds else None,
        "may_gate": gate,
        "why": why,
    }


def _alarms(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """In how many models a gate fails, of how many of which it says something; in how many it is undecided (`open`),
    and the mean score."""
    known = [one["score"] for one in found if one is not None and one["score"] is not None]
    return {
        "alarms": sum(one is not None and one["alarm"] for one in found),
        "models": len(known),
        "open": sum(one is not None and one["open"] for one in found),
        "mean": sum(known) / len(known) if known else None,
    }
