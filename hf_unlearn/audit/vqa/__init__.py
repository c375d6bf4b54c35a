# SPDX-License-Identifier: Apache-2.0
"""Classifiers of pictures and questions."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .measure import audit_classifier, shuffled_accuracy

__all__, __getattr__, __dir__ = lazy(__name__)
