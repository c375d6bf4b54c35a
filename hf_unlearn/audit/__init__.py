# SPDX-License-Identifier: Apache-2.0
"""Measures what a model knows, of any checkpoint. Nothing here imports a trainer."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "DEFAULT_FPRS": "privacy",
    "AUDITS": "registry",
    "SUITES": "suites",
    "Audit": "store",
    "AuditKind": "base",
    "AuditResult": "base",
    "BackdoorAudit": "backdoor.result",
    "BaseAttack": "privacy",
    "Classifier": "privacy",
    "FittedAttack": "privacy",
    "LanguageModel": "privacy",
    "LiRAAttack": "privacy",
    "MetricResult": "result",
    "MinKAttack": "privacy",
    "Privacy": "privacy",
    "ReferenceAttack": "privacy",
    "RowClassifier": "privacy",
    "ScrubAttack": "privacy",
    "Shadows": "privacy",
    "SignalAttack": "privacy",
    "Subject": "privacy",
    "Suite": "suites",
    "TokenScores": "scoring",
    "ULiRAAttack": "privacy",
    "ZlibAttack": "privacy",
    "as_subject": "privacy",
    "auc_result": "privacy",
    "audit_backdoor": "backdoor.evaluate",
    "audit_classifier": "vqa",
    "audit_model": "qa",
    "audit_rwku": "rwku",
    "cka_map": "vqa_cka",
    "covariance_distance": "distance",
    "evaluate_privacy": "privacy",
    "exact_match": "overlap",
    "exact_memorization": "memorization",
    "extraction_strength": "memorization",
    "fluency": "rwku_fluency",
    "forget_quality": "ratios",
    "gain": "backdoor.paired",
    "generate_answers": "generation",
    "holdout_auc": "muse_privleak",
    "knowmem": "muse",
    "knowmem_prompt": "muse",
    "linear_cka": "vqa_cka",
    "load": "evaluate_metrics",
    "load_muse": "muse_data",
    "log_truth_ratios": "ratios",
    "mcnemar": "backdoor.paired",
    "mean_shift": "distance",
    "membership_auc": "muse_privleak",
    "membership_scores": "muse_privleak",
    "model_utility": "utility",
    "muse_probes": "backdoor.probe_sets",
    "named_attacks": "privacy",
    "newcombe_interval": "backdoor.paired",
    "nonmembers_needed": "privacy",
    "privleak": "muse_privleak",
    "probability": "memorization",
    "published_rouge": "rwku_overlap",
    "question_probes": "backdoor.probe_sets",
    "representations": "vqa_cka",
    "roc_tpr": "privacy",
    "rouge": "overlap",
    "row_mse": "distance",
    "run_tasks": "harness",
    "score_rows": "scoring",
    "shuffled_accuracy": "vqa",
    "tpr_at_fpr": "privacy",
    "tpr_at_zero_fp": "privacy",
    "train_shadows": "privacy",
    "truth_ratio": "ratios",
    "verbmem": "muse",
}
__all__ = [
    "AUDITS",
    "DEFAULT_FPRS",
    "SUITES",
    "Audit",
    "AuditKind",
    "AuditResult",
    "BackdoorAudit",
    "BaseAttack",
    "Classifier",
    "FittedAttack",
    "LanguageModel",
    "LiRAAttack",
    "MetricResult",
    "MinKAttack",
    "Privacy",
    "ReferenceAttack",
    "RowClassifier",
    "ScrubAttack",
    "Shadows",
    "SignalAttack",
    "Subject",
    "Suite",
    "TokenScores",
    "ULiRAAttack",
    "ZlibAttack",
    "as_subject",
    "auc_result",
    "audit_backdoor",
    "audit_classifier",
    "audit_model",
    "audit_rwku",
    "cka_map",
    "covariance_distance",
    "evaluate_privacy",
    "exact_match",
    "exact_memorization",
    "extraction_strength",
    "fluency",
    "forget_quality",
    "gain",
    "generate_answers",
    "holdout_auc",
    "knowmem",
    "knowmem_prompt",
    "linear_cka",
    "load",
    "load_muse",
    "log_truth_ratios",
    "mcnemar",
    "mean_shift",
    "membership_auc",
    "membership_scores",
    "model_utility",
    "muse_probes",
    "named_attacks",
    "newcombe_interval",
    "nonmembers_needed",
    "privleak",
    "probability",
    "published_rouge",
    "question_probes",
    "representations",
    "roc_tpr",
    "rouge",
    "row_mse",
    "run_tasks",
    "score_rows",
    "shuffled_accuracy",
    "tpr_at_fpr",
    "tpr_at_zero_fp",
    "train_shadows",
    "truth_ratio",
    "verbmem",
]

if TYPE_CHECKING:
    from .backdoor.evaluate import audit_backdoor
    from .backdoor.paired import gain, mcnemar, newcombe_interval
    from .backdoor.probe_sets import muse_probes, question_probes
    from .backdoor.result import BackdoorAudit
    from .base import AuditKind, AuditResult
    from .distance import covariance_distance, mean_shift, row_mse
    from .evaluate_metrics import load
    from .generation import generate_answers
    from .harness import run_tasks
    from .memorization import exact_memorization, extraction_strength, probability
    from .muse import knowmem, knowmem_prompt, verbmem
    from .muse_data import load_muse
    from .muse_privleak import holdout_auc, membership_auc, membership_scores, privleak
    from .overlap import exact_match, rouge
    from .privacy import (
        DEFAULT_FPRS,
        BaseAttack,
        Classifier,
        FittedAttack,
        LanguageModel,
        LiRAAttack,
        MinKAttack,
        Privacy,
        ReferenceAttack,
        RowClassifier,
        ScrubAttack,
        Shadows,
        SignalAttack,
        Subject,
        ULiRAAttack,
        ZlibAttack,
        as_subject,
        auc_result,
        evaluate_privacy,
        named_attacks,
        nonmembers_needed,
        roc_tpr,
        tpr_at_fpr,
        tpr_at_zero_fp,
        train_shadows,
    )
    from .qa import audit_model
    from .ratios import forget_quality, log_truth_ratios, truth_ratio
    from .registry import AUDITS
    from .result import MetricResult
    from .rwku import audit_rwku
    from .rwku_fluency import fluency
    from .rwku_overlap import published_rouge
    from .scoring import TokenScores, score_rows
    from .store import Audit
    from .suites import SUITES, Suite
    from .utility import model_utility
    from .vqa import audit_classifier, shuffled_accuracy
    from .vqa_cka import cka_map, linear_cka, representations


def __getattr__(name: str):
    # Torch and `evaluate` take seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
