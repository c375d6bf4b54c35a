# SPDX-License-Identifier: Apache-2.0
"""RMU."""

from .trainer import RMUConfig, RMUTrainer


__all__ = ["RMUConfig", "RMUTrainer"]
