# SPDX-License-Identifier: Apache-2.0
"""The world of pictures as the rest of the library sees it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ....cache import cache_root
from ...synthetic.cache import METADATA, cached_folder
from .config import VQAWorldConfig
from .rows import SETS, WorldRows, plan_rows


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ViltProcessor

logger = logging.getLogger(__name__)

# Raise it when the pictures, the processor, the models or their training change: other versions are then not used.
VERSION = 1


@dataclass(frozen=True)
class VQAWorld:
    """
    A built world of pictures: data sets, processor and three checkpoints in one folder.

    Args:
        path (`Path`):
            The folder.
    """

    path: Path

    @property
    def start(self) -> Path:
        """Checkpoint before any training: what retraining starts from."""
        return self.path / "start"

    @property
    def target(self) -> Path:
        """Checkpoint trained on forget and retain rows: the model to unlearn from."""
        return self.path / "target"

    @property
    def retrained(self) -> Path:
        """Checkpoint trained without the forget rows, from the same start and as long: the gold standard."""
        return self.path / "retrained"

    @cached_property
    def metadata(self) -> dict:
        """
        `seed`, `config`, `sizes` of the sets, `accuracy` by model and set, wall `seconds` (`build` in all, `target`
        and `retrained` their training), `versions`.
        """
        return json.loads((self.path / METADATA).read_text(encoding="utf-8"))

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
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer between 0 and 2**32 - 1, got {seed!r}.")
    config = config or VQAWorldConfig()
    rows = plan_rows(seed, config)
    path = cache_root(cache_dir) / f"vqa-world-{_content_hash(seed, config, rows)}"
    if cached_folder(path, lambda folder: _build(folder, seed, config, rows, progress)):
        logger.info("Built the world of pictures in %s", path)
    else:
        logger.info("Reusing the world of pictures in %s", path)
    return VQAWorld(path)


def _content_hash(seed: int, config: VQAWorldConfig, rows: WorldRows) -> str:
    content = {
        "version": VERSION,
        "seed": seed,
        "config": dataclasses.asdict(config),
        "rows": dataclasses.asdict(rows),
        # A new major version may write files that an older one cannot read
        "libraries": {name: number.split(".")[0] for name, number in _versions().items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "pillow")}


def _build(folder: Path, seed: int, config: VQAWorldConfig, rows: WorldRows, progress: bool) -> dict:
    from tqdm.auto import tqdm

    from .processor import build_processor
    from .training import KINDS, check, encode_world, initial_model, measure, one_thread, train_models

    begin = time.monotonic()
    processor = build_processor(row["question"] for of_set in rows.sets.values() for row in of_set)
    with one_thread(), tqdm(total=len(KINDS) * config.steps, unit="step", disable=not progress) as bar:

        def advance(kind: str) -> None:
            bar.set_description(f"Building the world of pictures: {kind} model", refresh=False)
            bar.update()

        start = initial_model(processor, rows.labels, seed, config)
        pixels, sets = encode_world(rows, processor)
        models, seconds = train_models(start, pixels, sets, seed, config, advance)
        accuracy = measure(models, pixels, sets, seed)
    check(accuracy, config)

    for name, model in {"start": start, **models}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for name in SETS:
        _save(rows, name, folder / name)
    return {
        "seed": seed,
        "config": dataclasses.asdict(config),
        "sizes": {name: len(of_set) for name, of_set in rows.sets.items()},
        "accuracy": accuracy,
        "seconds": {"build": round(time.monotonic() - begin, 1), **seconds},
        "versions": _versions(),
    }


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
