# SPDX-License-Identifier: Apache-2.0
"""The world of pictures as the rest of the library sees it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import KINDS, BuiltWorld, WorldBuilder
from .config import VQAWorldConfig
from .splits import SETS, WorldRows, plan_rows


if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import ViltForQuestionAnswering, ViltProcessor

    from .training import Encoded


@dataclass(frozen=True)
class VQAWorld(BuiltWorld):
    """A built world of pictures. `metadata["accuracy"]` has each model's, by set; its `seconds` are `build` in all,
    `target` and `retrained` their training."""

    @property
    def start(self) -> Path:
        """Checkpoint before any training: what retraining starts from."""
        return self.path / "start"

    @cached_property
    def processor(self) -> ViltProcessor:
        """The processor of all models."""
        from transformers import ViltProcessor

        return ViltProcessor.from_pretrained(self.target)

    def dataset(self, name: str) -> Dataset:
        """
        One of the data sets.

        Args:
            name (`str`):
                `"forget"` (owners of some pictures), `"retain"` (owners of others, and what can be seen in all),
                `"test"` (what can be seen in new pictures) or `"holdout"` (owners of new pictures, which no model was
                told).

        Returns:
            `datasets.Dataset`: with `example_id`, `image_id`, `image`, `question`, `answers` (ten), `answer` and
            `kind` (`colour`, `shape`, `count`, `place`, `owner`).

        Raises:
            ValueError: If there is no such set.
        """
        if name not in SETS:
            raise ValueError(f"Unknown data set {name!r} of the world of pictures, choose one of {', '.join(SETS)}.")
        from datasets import load_from_disk

        return load_from_disk(self.path / name)


def build_vqa_world(
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
    config: VQAWorldConfig | None = None,
) -> VQAWorld:
    """
    Build the world of pictures, or reuse it if it was built before.

    Needs no download. Every process of a distributed job may call it: one builds, the others wait.

    ```python
    from hf_unlearn.data.vqa import build_vqa_world

    world = build_vqa_world()
    model = ViltForQuestionAnswering.from_pretrained(world.target)
    forget = world.dataset("forget")
    ```

    Args:
        seed (`int`, *optional*, defaults to 0):
            Decides the pictures, the owners and the models' start.
        cache_dir (`str` or `Path`, *optional*):
            Where worlds are kept. Defaults to `$HF_UNLEARN_CACHE`, else `~/.cache/hf_unlearn`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar while building.
        config (`VQAWorldConfig`, *optional*):
            Other sizes than the defaults.

    Returns:
        `VQAWorld`: the world.

    Raises:
        ValueError: If the seed or the config is unusable.
        RuntimeError: If the trained models miss what the config demands; nothing is cached then.
    """
    return VQAWorld(PicturesBuilder(seed, config or VQAWorldConfig()).build(cache_dir, progress))


class PicturesBuilder(WorldBuilder):
    """Drawn shapes, their owners, and two ViLTs."""

    title, prefix, version, scored = "world of pictures", "vqa-world", 1, "accuracy"
    libraries = ("torch", "transformers", "tokenizers", "datasets", "pillow")
    complaint = "accuracy of the {kind} model on {name} is {score:.1%}"
    config: VQAWorldConfig

    @cached_property
    def rows(self) -> WorldRows:
        return plan_rows(self.seed, self.config)

    @property
    def sets(self) -> dict[str, list[dict]]:
        return self.rows.sets

    def content(self) -> dict:
        return {"rows": dataclasses.asdict(self.rows)}

    @cached_property
    def processor(self) -> ViltProcessor:
        from .processor import build_processor

        return build_processor(row["question"] for of_set in self.sets.values() for row in of_set)

    @cached_property
    def encoded(self) -> tuple[torch.Tensor, dict[str, Encoded]]:
        from .training import encode_world

        return encode_world(self.rows, self.processor)

    def initial_model(self) -> ViltForQuestionAnswering:
        from .training import initial_model

        return initial_model(self.processor, self.rows.labels, self.seed, self.config)

    def losses(self, model: ViltForQuestionAnswering, sets: tuple[str, ...]) -> Iterator[torch.Tensor]:
        from .training import joined, losses

        pixels, encoded = self.encoded
        return losses(model, pixels, joined([encoded[name] for name in sets]), self.seed, self.config)

    def scores(self, model: ViltForQuestionAnswering) -> dict[str, float]:
        from .training import measure

        return measure(model, *self.encoded, self.seed)

    @classmethod
    def bounds(cls, config: VQAWorldConfig) -> list[tuple[str, str, float, float]]:
        known = [(kind, name, config.min_known, 1.0) for kind, names in KINDS.items() for name in names]
        seen = [(kind, "test", config.min_seen, 1.0) for kind in KINDS]
        shuffled = [(kind, "test_shuffled", 0.0, config.max_shuffled) for kind in KINDS]
        return [*known, *seen, *shuffled, ("retrained", "forget", 0.0, config.max_unseen)]

    def saved(self, start: Any, models: dict[str, Any]) -> dict[str, Any]:
        return {"start": start, **models}

    def seconds(self, build: float, training: dict[str, float]) -> dict[str, float]:
        return {"build": round(build, 1), **training}

    def save_set(self, name: str, folder: Path) -> None:
        _save(self.rows, name, folder / name)


def _save(rows: WorldRows, name: str, path: Path) -> None:
    from datasets import Dataset, Image, disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    of_set = rows.sets[name]
    images = [{"bytes": rows.pictures[row["image_id"]].png(), "path": None} for row in of_set]
    dataset = Dataset.from_list(of_set).add_column("image", images).cast_column("image", Image())
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    dataset.save_to_disk(path)
    if shown:
        enable_progress_bars()
