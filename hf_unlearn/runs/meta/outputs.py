# SPDX-License-Identifier: Apache-2.0
"""Metrics of a model's answers, on the scale of the audits of robustness."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...audit.base import AuditResult
from ...audit.qa import audit_model
from ...audit.result import MetricResult
from ...audit.robustness.recovery import remaining


METRICS = ("probability", "exact_match", "rouge", "truth_ratio", "extraction_strength")


def output_metrics(model: nn.Module, tokenizer: Any, forget: Sequence[Mapping[str, Any]]) -> AuditResult:
    """The metrics of the answers to the forget questions, by row: as `hf-unlearn eval` has them."""
    start = time.perf_counter()
    found = audit_model(model, tokenizer, {"forget": list(forget)}, max_new_tokens=32, paraphrased_questions=False,
                        progress=False)  # fmt: skip
    metrics = {name: found.metrics[f"forget/{name}"] for name in METRICS}
    return AuditResult(metrics, {}, {"seconds": round(time.perf_counter() - start, 2)})


def left(
    model: AuditResult, retrained: AuditResult, original: AuditResult, groups: Sequence[str]
) -> dict[str, MetricResult]:
    """What is left by each metric: 1 as in the original model, 0 as in the retrained one, with the same intervals and
    the same bound as the audits of robustness have."""
    found = {}
    for name in METRICS:
        u, r, o = (_knowing(one.metrics[name]) for one in (model, retrained, original))
        found[name] = remaining(u, r, o, groups, name=name)
    return found


def _knowing(metric: MetricResult) -> list[float | None]:
    """The values by row, higher where more is known."""
    if metric.direction != "higher":
        return metric.per_item
    return [None if value is None else 1 - value for value in metric.per_item]
