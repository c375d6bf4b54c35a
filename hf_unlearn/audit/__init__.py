# SPDX-License-Identifier: Apache-2.0
"""Measures what a model knows, of any checkpoint. Nothing here imports a trainer."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "SUITES": "suites",
    "Audit": "store",
    "MetricResult": "result",
    "Suite": "suites",
    "TokenScores": "scoring",
    "audit_model": "qa",
    "exact_match": "overlap",
    "exact_memorization": "memorization",
    "extraction_strength": "memorization",
    "forget_quality": "ratios",
    "generate_answers": "generation",
    "load": "evaluate_metrics",
    "log_truth_ratios": "ratios",
    "model_utility": "utility",
    "probability": "memorization",
    "rouge": "overlap",
    "score_rows": "scoring",
    "truth_ratio": "ratios",
}
__all__ = [
    "SUITES",
    "Audit",
    "MetricResult",
    "Suite",
    "TokenScores",
    "audit_model",
    "exact_match",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "generate_answers",
    "load",
    "log_truth_ratios",
    "model_utility",
    "probability",
    "rouge",
    "score_rows",
    "truth_ratio",
]

if TYPE_CHECKING:
    from .evaluate_metrics import load
    from .generation import generate_answers
    from .memorization import exact_memorization, extraction_strength, probability
    from .overlap import exact_match, rouge
    from .qa import audit_model
    from .ratios import forget_quality, log_truth_ratios, truth_ratio
    from .result import MetricResult
    from .scoring import TokenScores, score_rows
    from .store import Audit
    from .suites import SUITES, Suite
    from .utility import model_utility


def __getattr__(name: str):
    # Torch and `evaluate` take seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
