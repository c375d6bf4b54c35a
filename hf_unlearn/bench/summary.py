# SPDX-License-Identifier: Apache-2.0
"""From single runs to medians and ratios."""

from collections.abc import Sequence
from statistics import median

from .cases import Case


RATIOS = {"time_ratio": "step_seconds", "cpu_time_ratio": "cpu_seconds", "memory_ratio": "above_model_bytes"}


def summarise(runs: list[dict], cases: Sequence[Case]) -> list[dict]:
    """One row a case. A number with a spread is `{"median", "min", "max"}` over the repeats.

    Ratios of memory are taken within a repeat, those of time to fine-tuning in the same process where it was measured
    there, and then summed up.
    """
    return [_row(case, runs) for case in cases]


def _row(case: Case, runs: list[dict]) -> dict:
    own = {run["repeat"]: run for run in runs if run["label"] == case.label}
    row = {"label": case.label, "method": case.method, "settings": case.settings, "baseline": case.baseline}
    errors = [run["error"] for run in own.values() if "error" in run]
    if errors:
        return row | {"error": errors[0]}
    base = {run["repeat"]: run for run in runs if run["label"] == case.baseline}
    for name in ("step_seconds", "above_model_bytes", "peak_bytes", "tokens_per_second"):
        row[name] = _spread([run[name] for run in own.values()])
    for ratio, name in RATIOS.items():
        bases = {repeat: {**base[repeat], **run.get("beside", {})} for repeat, run in own.items()}
        row[ratio] = _spread([run[name] / bases[repeat][name] for repeat, run in own.items()])
    first = own[min(own)]
    for name in ("flops_per_second", "utilisation"):
        known = [run[name] for run in own.values()]
        row[name] = None if None in known else _spread(known)
    for name in ("policy_forwards", "reference_forwards"):
        row[name] = max(run[name] for run in own.values())
    # The first process of a case may have to make its reference; those after it find it.
    row["preparation_tokens"] = [tokens for run in own.values() for tokens in run["preparation_tokens"]]
    for name in ("parameters", "model_bytes", "loaded_bytes"):
        row[name] = first[name]
    return row


def _spread(values: list[float]) -> dict:
    return {"median": median(values), "min": min(values), "max": max(values)}
