# SPDX-License-Identifier: Apache-2.0
"""Membership inference: can anyone tell forgotten rows from unseen ones? Nothing here imports a trainer."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .attack import BaseAttack
    from .attacks import MinKAttack, ReferenceAttack, SignalAttack, ZlibAttack
    from .choose_subject import as_subject
    from .classifiers import Classifier, RowClassifier
    from .evaluate import evaluate_privacy
    from .fitted import FittedAttack, ScrubAttack
    from .lira import LiRAAttack, ULiRAAttack
    from .names import named_attacks
    from .rates import DEFAULT_FPRS, auc_interval, auc_result, nonmembers_needed, roc_tpr, tpr_at_fpr, tpr_at_zero_fp
    from .result import Privacy
    from .shadows import Shadows, train_shadows
    from .subjects import LanguageModel, Subject

__all__, __getattr__, __dir__ = lazy(__name__)
