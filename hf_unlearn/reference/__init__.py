# SPDX-License-Identifier: Apache-2.0
"""Frozen models that rows are compared with: what forms they take, and which one a run needs."""

from ..models.checkpoint_paths import REFERENCE_ADAPTER
from .base import Reference
from .build import ReferenceRequest, build_reference
from .cached import CachedReference
from .live import LiveReference, frozen_copy
from .twin import AdapterReference, TwinReference


__all__ = [
    "REFERENCE_ADAPTER",
    "AdapterReference",
    "CachedReference",
    "LiveReference",
    "Reference",
    "ReferenceRequest",
    "TwinReference",
    "build_reference",
    "frozen_copy",
]
