# SPDX-License-Identifier: Apache-2.0
"""Membership inference: can anyone tell forgotten rows from unseen ones? Nothing here imports a trainer."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "DEFAULT_FPRS": "rates",
    "BaseAttack": "attack",
    "Classifier": "classifiers",
    "FittedAttack": "fitted",
    "LanguageModel": "subjects",
    "LiRAAttack": "lira",
    "MinKAttack": "attacks",
    "Privacy": "result",
    "ReferenceAttack": "attacks",
    "RowClassifier": "classifiers",
    "ScrubAttack": "fitted",
    "Shadows": "shadows",
    "SignalAttack": "attacks",
    "Subject": "subjects",
    "ULiRAAttack": "lira",
    "ZlibAttack": "attacks",
    "as_subject": "choose_subject",
    "auc_interval": "rates",
    "auc_result": "rates",
    "evaluate_privacy": "evaluate",
    "named_attacks": "names",
    "nonmembers_needed": "rates",
    "roc_tpr": "rates",
    "tpr_at_fpr": "rates",
    "tpr_at_zero_fp": "rates",
    "train_shadows": "shadows",
}
__all__ = [
    "DEFAULT_FPRS",
    "BaseAttack",
    "Classifier",
    "FittedAttack",
    "LanguageModel",
    "LiRAAttack",
    "MinKAttack",
    "Privacy",
    "ReferenceAttack",
    "RowClassifier",
    "ScrubAttack",
    "Shadows",
    "SignalAttack",
    "Subject",
    "ULiRAAttack",
    "ZlibAttack",
    "as_subject",
    "auc_interval",
    "auc_result",
    "evaluate_privacy",
    "named_attacks",
    "nonmembers_needed",
    "roc_tpr",
    "tpr_at_fpr",
    "tpr_at_zero_fp",
    "train_shadows",
]

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


def __getattr__(name: str):
    # Torch takes seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
