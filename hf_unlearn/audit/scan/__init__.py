# SPDX-License-Identifier: Apache-2.0
"""The defender's side of a backdoor: looks for words behind which a checkpoint answers what it was made to forget."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .budget import Budget
    from .scan import ScanSettings, scan_model
    from .search import SearchSettings

__all__, __getattr__, __dir__ = lazy(__name__)
