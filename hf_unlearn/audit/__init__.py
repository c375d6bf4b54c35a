# SPDX-License-Identifier: Apache-2.0
"""Measures what a model knows, of any checkpoint. Nothing here imports a trainer."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "SUITES": "suites",
    "Audit": "store",
    "BackdoorAudit": "backdoor_store",
    "MetricResult": "result",
    "Suite": "suites",
    "TokenScores": "scoring",
    "audit_backdoor": "backdoor",
    "audit_classifier": "vqa",
    "audit_model": "qa",
    "audit_rwku": "rwku",
    "evaluate_privacy": "privacy",
    "exact_match": "overlap",
    "exact_memorization": "memorization",
    "extraction_strength": "memorization",
    "forget_quality": "ratios",
    "generate_answers": "generation",
    "knowmem": "muse",
    "load": "evaluate_metrics",
    "load_muse": "muse_data",
    "log_truth_ratios": "ratios",
    "membership_auc": "muse_privleak",
    "membership_scores": "muse_privleak",
    "model_utility": "utility",
    "muse_probes": "backdoor_sets",
    "privleak": "muse_privleak",
    "probability": "memorization",
    "question_probes": "backdoor_sets",
    "rouge": "overlap",
    "run_tasks": "harness",
    "score_rows": "scoring",
    "truth_ratio": "ratios",
    "verbmem": "muse",
}
__all__ = [
    "SUITES",
    "Audit",
    "BackdoorAudit",
    "MetricResult",
    "Suite",
    "TokenScores",
    "audit_backdoor",
    "audit_classifier",
    "audit_model",
    "audit_rwku",
    "evaluate_privacy",
    "exact_match",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "generate_answers",
    "knowmem",
    "load",
    "load_muse",
    "log_truth_ratios",
    "membership_auc",
    "membership_scores",
    "model_utility",
    "muse_probes",
    "privleak",
    "probability",
    "question_probes",
    "rouge",
    "run_tasks",
    "score_rows",
    "truth_ratio",
    "verbmem",
]

if TYPE_CHECKING:
    from .backdoor import audit_backdoor
    from .backdoor_sets import muse_probes, question_probes
    from .backdoor_store import BackdoorAudit
    from .evaluate_metrics import load
    from .generation import generate_answers
    from .harness import run_tasks
    from .memorization import exact_memorization, extraction_strength, probability
    from .muse import knowmem, verbmem
    from .muse_data import load_muse
    from .muse_privleak import membership_auc, membership_scores, privleak
    from .overlap import exact_match, rouge
    from .privacy import evaluate_privacy
    from .qa import audit_model
    from .ratios import forget_quality, log_truth_ratios, truth_ratio
    from .result import MetricResult
    from .rwku import audit_rwku
    from .scoring import TokenScores, score_rows
    from .store import Audit
    from .suites import SUITES, Suite
    from .utility import model_utility
    from .vqa import audit_classifier


def __getattr__(name: str):
    # Torch and `evaluate` take seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
