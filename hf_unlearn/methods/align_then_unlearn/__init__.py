# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn: a head over a language model's states predicts the text to come in a text encoder's space; the
states are pushed until it no longer finds a concept."""

from .trainer import AlignThenUnlearnConfig, AlignThenUnlearnTrainer


__all__ = ["AlignThenUnlearnConfig", "AlignThenUnlearnTrainer"]
