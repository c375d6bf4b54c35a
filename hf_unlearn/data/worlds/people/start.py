# SPDX-License-Identifier: Apache-2.0
"""What both models of the embedded world began as: random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import cached_folder


if TYPE_CHECKING:
    from .world import World


def world_start(world: World) -> Path:
    """
    Draw a world's first weights again, or find them.

    Args:
        world (`World`):
            Whose models began so.

    Returns:
        `Path`: a checkpoint with the world's tokenizer.
    """
    path = world.path.parent / f"{world.path.name}-start"
    cached_folder(path, lambda folder: _build(world, folder))
    return path


def _build(world: World, folder: Path) -> dict:
    from .config import WorldConfig
    from .training import initial_model

    about = world.metadata
    initial_model(world.tokenizer, about["seed"], WorldConfig(**about["config"])).save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)
    return {"seed": about["seed"]}
