# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of many runs."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .write import load_sweep, print_sweep, write_sweep_report

__all__, __getattr__, __dir__ = lazy(__name__)
