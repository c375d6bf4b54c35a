# SPDX-License-Identifier: Apache-2.0
"""Another name of [`hf_unlearn.data.worlds.rwku.fixture`], kept for code that knows it."""

from ..worlds.rwku.fixture import write_fixture


__all__ = ["write_fixture"]
