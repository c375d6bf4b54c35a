# SPDX-License-Identifier: Apache-2.0
"""Measures what a model knows, of any checkpoint. Nothing here imports a trainer."""

from typing import TYPE_CHECKING

from ..lazy import lazy


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
    from .muse.data import load_muse
    from .muse.measure import knowmem, knowmem_prompt, verbmem
    from .muse.privleak import holdout_auc, membership_auc, membership_scores, privleak
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
    from .rwku.fluency import fluency
    from .rwku.measure import audit_rwku
    from .rwku.overlap import published_rouge
    from .scoring import TokenScores, score_rows
    from .store import Audit
    from .suites import SUITES, Suite
    from .utility import model_utility
    from .vqa.cka import cka_map, linear_cka, representations
    from .vqa.measure import audit_classifier, shuffled_accuracy

__all__, __getattr__, __dir__ = lazy(__name__)
