# SPDX-License-Identifier: Apache-2.0
"""Unlearning as a HuggingFace Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import moved
from .methods import METHODS
from .version import __version__


moved.install()

_PUBLIC = {
    "AmnesiacRecorder": "hf_unlearn.methods.amnesiac.step_deltas",
    "MUAlign": "hf_unlearn.methods.mu_align.short",
    "UnlearnConfig": "hf_unlearn.training.config",
    "UnlearnTrainer": "hf_unlearn.training.trainer",
    "UnlearnedWrapper": "hf_unlearn.models.wrappers",
    "load_unlearned": "hf_unlearn.models.loading",
    "split_forget_retain": "hf_unlearn.data.preference",
    **METHODS.public_names(),
}
__all__ = ["METHODS", "__version__", *_PUBLIC]  # noqa: PLE0604

if TYPE_CHECKING:
    from .data.preference import split_forget_retain as split_forget_retain
    from .methods.align_then_unlearn.trainer import AlignThenUnlearnConfig as AlignThenUnlearnConfig
    from .methods.align_then_unlearn.trainer import AlignThenUnlearnTrainer as AlignThenUnlearnTrainer
    from .methods.amnesiac.step_deltas import AmnesiacRecorder as AmnesiacRecorder
    from .methods.amnesiac.trainer import AmnesiacConfig as AmnesiacConfig
    from .methods.amnesiac.trainer import AmnesiacTrainer as AmnesiacTrainer
    from .methods.fisher.trainer import FisherConfig as FisherConfig
    from .methods.fisher.trainer import FisherTrainer as FisherTrainer
    from .methods.ga import GAConfig as GAConfig
    from .methods.ga import GATrainer as GATrainer
    from .methods.mu_align.short import MUAlign as MUAlign
    from .methods.mu_align.trainer import MUAlignConfig as MUAlignConfig
    from .methods.mu_align.trainer import MUAlignTrainer as MUAlignTrainer
    from .methods.multidelete import MultiDeleteConfig as MultiDeleteConfig
    from .methods.multidelete import MultiDeleteTrainer as MultiDeleteTrainer
    from .methods.npo import NPOConfig as NPOConfig
    from .methods.npo import NPOTrainer as NPOTrainer
    from .methods.retrain import RetrainConfig as RetrainConfig
    from .methods.retrain import RetrainTrainer as RetrainTrainer
    from .methods.rmu.trainer import RMUConfig as RMUConfig
    from .methods.rmu.trainer import RMUTrainer as RMUTrainer
    from .methods.scrub.trainer import ScrubConfig as ScrubConfig
    from .methods.scrub.trainer import ScrubTrainer as ScrubTrainer
    from .models.loading import load_unlearned as load_unlearned
    from .models.wrappers import UnlearnedWrapper as UnlearnedWrapper
    from .training.config import UnlearnConfig as UnlearnConfig
    from .training.trainer import UnlearnTrainer as UnlearnTrainer


def __getattr__(name: str):
    # Transformers alone takes seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
