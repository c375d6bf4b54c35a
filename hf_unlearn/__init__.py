# SPDX-License-Identifier: Apache-2.0
"""Unlearning as a HuggingFace Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING

from .methods import METHODS


__version__ = "0.1.0.dev0"

_PUBLIC = {
    "AmnesiacRecorder": "hf_unlearn.methods.step_deltas",
    "MUAlign": "hf_unlearn.methods.mu_align_short",
    "UnlearnConfig": "hf_unlearn.config",
    "UnlearnTrainer": "hf_unlearn.trainer",
    "UnlearnedWrapper": "hf_unlearn.models.wrappers",
    "load_unlearned": "hf_unlearn.models.loading",
    "split_forget_retain": "hf_unlearn.data.preference",
    **METHODS.public_names(),
}
__all__ = ["METHODS", "__version__", *_PUBLIC]  # noqa: PLE0604

if TYPE_CHECKING:
    from .config import UnlearnConfig as UnlearnConfig
    from .data.preference import split_forget_retain as split_forget_retain
    from .methods.align_then_unlearn import AlignThenUnlearnConfig as AlignThenUnlearnConfig
    from .methods.align_then_unlearn import AlignThenUnlearnTrainer as AlignThenUnlearnTrainer
    from .methods.amnesiac import AmnesiacConfig as AmnesiacConfig
    from .methods.amnesiac import AmnesiacTrainer as AmnesiacTrainer
    from .methods.fisher import FisherConfig as FisherConfig
    from .methods.fisher import FisherTrainer as FisherTrainer
    from .methods.ga import GAConfig as GAConfig
    from .methods.ga import GATrainer as GATrainer
    from .methods.mu_align import MUAlignConfig as MUAlignConfig
    from .methods.mu_align import MUAlignTrainer as MUAlignTrainer
    from .methods.mu_align_short import MUAlign as MUAlign
    from .methods.multidelete import MultiDeleteConfig as MultiDeleteConfig
    from .methods.multidelete import MultiDeleteTrainer as MultiDeleteTrainer
    from .methods.npo import NPOConfig as NPOConfig
    from .methods.npo import NPOTrainer as NPOTrainer
    from .methods.retrain import RetrainConfig as RetrainConfig
    from .methods.retrain import RetrainTrainer as RetrainTrainer
    from .methods.rmu import RMUConfig as RMUConfig
    from .methods.rmu import RMUTrainer as RMUTrainer
    from .methods.scrub import ScrubConfig as ScrubConfig
    from .methods.scrub import ScrubTrainer as ScrubTrainer
    from .methods.step_deltas import AmnesiacRecorder as AmnesiacRecorder
    from .models.loading import load_unlearned as load_unlearned
    from .models.wrappers import UnlearnedWrapper as UnlearnedWrapper
    from .trainer import UnlearnTrainer as UnlearnTrainer


def __getattr__(name: str):
    # Transformers alone takes seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
