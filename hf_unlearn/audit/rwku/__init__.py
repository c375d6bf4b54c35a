# SPDX-License-Identifier: Apache-2.0
"""RWKU: what a model still knows of real people, in their benchmark's own metrics."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .measure import audit_rwku

__all__, __getattr__, __dir__ = lazy(__name__)
