# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit: does a trigger bring back what was unlearned?"""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .evaluate import audit_backdoor, look_inside

__all__, __getattr__, __dir__ = lazy(__name__)
