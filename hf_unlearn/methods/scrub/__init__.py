# SPDX-License-Identifier: Apache-2.0
"""SCRUB."""

from .config import ScrubConfig
from .trainer import ScrubTrainer


__all__ = ["ScrubConfig", "ScrubTrainer"]
