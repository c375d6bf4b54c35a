# SPDX-License-Identifier: Apache-2.0
"""The embedded world: fictional people, a tokenizer and two tiny models that need no download."""

from .config import WorldConfig
from .world import World, build_world


__all__ = ["World", "WorldConfig", "build_world"]
