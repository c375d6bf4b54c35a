# SPDX-License-Identifier: Apache-2.0
"""Membership inference as it is read: tables, figures and text of `privacy.json`."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .write import load_privacy_report, print_privacy_report, write_privacy_report

__all__, __getattr__, __dir__ = lazy(__name__)
