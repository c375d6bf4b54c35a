# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit as it is read."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .write import print_backdoor, render_backdoor, write_backdoor

__all__, __getattr__, __dir__ = lazy(__name__)
