# SPDX-License-Identifier: Apache-2.0
"""Amnesiac unlearning."""

from .trainer import AmnesiacConfig, AmnesiacTrainer


__all__ = ["AmnesiacConfig", "AmnesiacTrainer"]
