# SPDX-License-Identifier: Apache-2.0
"""Another name of [`hf_unlearn.data.worlds.people`], kept for code that knows it."""

from .worlds.people import World, WorldConfig, build_world


__all__ = ["World", "WorldConfig", "build_world"]
