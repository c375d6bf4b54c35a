# SPDX-License-Identifier: Apache-2.0
"""Unlearning as a HuggingFace Trainer."""

from typing import TYPE_CHECKING

from . import moved
from .lazy import lazy
from .methods import METHODS
from .version import __version__


moved.install()

if TYPE_CHECKING:
    from .data.preference import split_forget_retain
    from .methods.align_then_unlearn.trainer import AlignThenUnlearnConfig, AlignThenUnlearnTrainer
    from .methods.amnesiac.step_deltas import AmnesiacRecorder
    from .methods.amnesiac.trainer import AmnesiacConfig, AmnesiacTrainer
    from .methods.fisher.trainer import FisherConfig, FisherTrainer
    from .methods.ga import GAConfig, GATrainer
    from .methods.mu_align.short import MUAlign
    from .methods.mu_align.trainer import MUAlignConfig, MUAlignTrainer
    from .methods.multidelete import MultiDeleteConfig, MultiDeleteTrainer
    from .methods.npo import NPOConfig, NPOTrainer
    from .methods.retrain import RetrainConfig, RetrainTrainer
    from .methods.rmu.trainer import RMUConfig, RMUTrainer
    from .methods.scrub.trainer import ScrubConfig, ScrubTrainer
    from .models.loading import load_unlearned
    from .models.wrappers import UnlearnedWrapper
    from .training.config import UnlearnConfig
    from .training.trainer import UnlearnTrainer

__all__, __getattr__, __dir__ = lazy(__name__, METHODS.public_names())
__all__ += ["METHODS", "__version__"]
