# SPDX-License-Identifier: Apache-2.0
"""The defender's side of a backdoor: looks for words behind which a checkpoint answers what it was made to forget."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "Budget": "budget",
    "ScanSettings": "scan",
    "SearchSettings": "search",
    "scan_model": "scan",
}
__all__ = ["Budget", "ScanSettings", "SearchSettings", "scan_model"]

if TYPE_CHECKING:
    from .budget import Budget
    from .scan import ScanSettings, scan_model
    from .search import SearchSettings


def __getattr__(name: str):
    # Torch takes seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
