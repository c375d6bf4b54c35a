# SPDX-License-Identifier: Apache-2.0
"""A run compared with thresholds."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .evaluate import judge
    from .spec import load_gates

__all__, __getattr__, __dir__ = lazy(__name__)
