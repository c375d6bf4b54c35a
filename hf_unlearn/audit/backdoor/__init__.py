# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit: does a trigger bring back what was unlearned?"""

from importlib import import_module
from typing import TYPE_CHECKING


__all__ = ["audit_backdoor", "look_inside"]

if TYPE_CHECKING:
    from .evaluate import audit_backdoor, look_inside


def __getattr__(name: str):
    # Torch takes seconds to import; names are looked up when they are used.
    if name in __all__:
        return getattr(import_module(f"{__name__}.evaluate"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
