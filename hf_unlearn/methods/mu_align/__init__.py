# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN."""

from .config import MUAlignConfig
from .trainer import MUAlignTrainer


__all__ = ["MUAlignConfig", "MUAlignTrainer"]
