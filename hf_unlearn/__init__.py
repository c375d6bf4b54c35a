# SPDX-License-Identifier: Apache-2.0
"""Unlearning as a HuggingFace Trainer."""

from typing import TYPE_CHECKING

from .lazy import lazy
from .methods import METHODS


__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from .config import UnlearnConfig
    from .data.preference import split_forget_retain
    from .methods.align_then_unlearn import AlignThenUnlearnConfig, AlignThenUnlearnTrainer
    from .methods.amnesiac import AmnesiacConfig, AmnesiacTrainer
    from .methods.fisher import FisherConfig, FisherTrainer
    from .methods.ga import GAConfig, GATrainer
    from .methods.mu_align import MUAlignConfig, MUAlignTrainer
    from .methods.mu_align_short import MUAlign
    from .methods.multidelete import MultiDeleteConfig, MultiDeleteTrainer
    from .methods.npo import NPOConfig, NPOTrainer
    from .methods.retrain import RetrainConfig, RetrainTrainer
    from .methods.rmu import RMUConfig, RMUTrainer
    from .methods.scrub import ScrubConfig, ScrubTrainer
    from .methods.step_deltas import AmnesiacRecorder
    from .trainer import UnlearnTrainer

__all__, __getattr__, __dir__ = lazy(__name__, METHODS.public_names())
__all__ += ["METHODS", "__version__"]
