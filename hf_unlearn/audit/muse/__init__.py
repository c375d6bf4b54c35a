# SPDX-License-Identifier: Apache-2.0
"""MUSE: what a model still says of a book or of news, and membership by PrivLeak."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .measure import knowmem, knowmem_prompt, verbmem

__all__, __getattr__, __dir__ = lazy(__name__)
