# SPDX-License-Identifier: Apache-2.0
"""How a world is made once and found again: rows, two trained models, and the proof that they know them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...cache import cache_root
from .folders import METADATA, cached_folder
from .settings import WorldSettings


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Which sets a model is trained on.
KINDS = {"target": ("forget", "retain"), "retrained": ("retain",)}
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class BuiltWorld:
    """
    Data sets, tokenizer or processor, and trained checkpoints in one folder.

    Args:
        path (`Path`):
            The folder.
    """

    path: Path

    @property
    def target(self) -> Path:
        """Checkpoint trained on the forget and retain rows: the model to unlearn from."""
        return self.path / "target"

    @property
    def retrained(self) -> Path:
        """Checkpoint trained without the forget rows, from the same start and as long: the gold standard."""
        return self.path / "retrained"

    @cached_property
    def metadata(self) -> dict:
        """`seed`, `config`, `sizes` of the sets, scores of the models by set, wall `seconds`, `versions`."""
        return json.loads((self.path / METADATA).read_text(encoding="utf-8"))


class WorldBuilder(ABC):
    """
    One kind of world: what differs between kinds.

    Args:
        seed (`int`):
            Decides the rows and the models' start.
        config (`WorldSettings`):
            Sizes.

    Raises:
        ValueError: If the seed is unusable.
    """

    title: ClassVar[str]
    """What messages call the world."""
    prefix: ClassVar[str]
    """Of its folder."""
    version: ClassVar[int]
    """Raised when the processor, the models or their training change: cached worlds of other versions are not used."""
    libraries: ClassVar[tuple[str, ...]]
    """A new major version of them may write files that an older one cannot read."""
    scored: ClassVar[str]
    """What the metadata calls the models' scores."""
    complaint: ClassVar[str]
    """A score that is out of its bounds, as a sentence."""

    def __init__(self, seed: int, config: WorldSettings):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be an integer between 0 and 2**32 - 1, got {seed!r}.")
        self.seed, self.config = seed, config

    @property
    @abstractmethod
    def sets(self) -> dict[str, list[dict]]:
        """The rows."""

    @abstractmethod
    def content(self) -> dict:
        """What decides the world besides seed and config, JSON-able."""

    @cached_property
    @abstractmethod
    def processor(self) -> Any:
        """The tokenizer or processor of all models."""

    @abstractmethod
    def initial_model(self) -> PreTrainedModel:
        """The weights that all models start from."""

    @abstractmethod
    def losses(self, model: PreTrainedModel, sets: tuple[str, ...]) -> Iterator[torch.Tensor]:
        """Endless losses of batches of these sets."""

    @abstractmethod
    def scores(self, model: PreTrainedModel) -> dict[str, float]:
        """By set, the fraction that the model knows."""

    @classmethod
    @abstractmethod
    def bounds(cls, config: WorldSettings) -> list[tuple[str, str, float, float]]:
        """Model, set, and the lowest and highest score that are allowed."""

    @abstractmethod
    def save_set(self, name: str, folder: Path) -> None:
        """Write one of the sets."""

    def saved(self, start: PreTrainedModel, models: dict[str, PreTrainedModel]) -> dict[str, PreTrainedModel]:
        """The checkpoints to keep."""
        return models

    def seconds(self, build: float, training: dict[str, float]) -> Any:
        """What the metadata says of the wall seconds."""
        return round(build, 1)

    def build(self, cache_dir: str | os.PathLike | None, progress: bool) -> Path:
        """Build the world, or find it: its folder."""
        path = cache_root(cache_dir) / f"{self.prefix}-{self._key()}"
        built = cached_folder(path, lambda folder: self._fill(folder, progress))
        logger.info("%s the %s in %s", "Built" if built else "Reusing", self.title, path)
        return path

    @classmethod
    def check(cls, scores: Scores, config: WorldSettings) -> None:
        """Raise `RuntimeError` if the models do not know what they should, or know what they should not."""
        problems = [
            cls.complaint.format(kind=kind, name=name, score=score)
            + (f" (at least {low:.1%})" if score < low else f" (at most {high:.1%})")
            for kind, name, low, high in cls.bounds(config)
            if not low <= (score := scores[kind][name]) <= high
        ]
        if problems:
            raise RuntimeError(
                f"The {cls.title} is unusable and was not cached: {'; '.join(problems)}. "
                f"Try another seed or a {type(config).__name__} with more steps."
            )

    def _key(self) -> str:
        content = {
            "version": self.version,
            "seed": self.seed,
            "config": dataclasses.asdict(self.config),
            **self.content(),
            "libraries": {name: number.split(".")[0] for name, number in self._versions().items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.libraries}

    def _fill(self, folder: Path, progress: bool) -> dict:
        from tqdm.auto import tqdm

        from .training import one_thread

        begin = time.monotonic()
        with one_thread():
            start = self.initial_model()
            with tqdm(total=len(KINDS) * self.config.steps, unit="step", disable=not progress) as bar:
                trained = {kind: self._train(kind, start, bar) for kind in KINDS}
            models = {kind: model for kind, (model, _) in trained.items()}
            scores = {kind: self.scores(model) for kind, model in models.items()}
        self.check(scores, self.config)
        for name, model in self.saved(start, models).items():
            model.save_pretrained(folder / name)
            self.processor.save_pretrained(folder / name)
        for name in self.sets:
            self.save_set(name, folder)
        return {
            "seed": self.seed,
            "config": dataclasses.asdict(self.config),
            "sizes": {name: len(rows) for name, rows in self.sets.items()},
            self.scored: scores,
            "seconds": self.seconds(time.monotonic() - begin, {kind: took for kind, (_, took) in trained.items()}),
            "versions": self._versions(),
        }

    def _train(self, kind: str, start: PreTrainedModel, bar: Any) -> tuple[PreTrainedModel, float]:
        from .training import train_steps

        begin = time.monotonic()
        bar.set_description(f"Building the {self.title}: {kind} model", refresh=False)
        model = copy.deepcopy(start)
        losses = self.losses(model, KINDS[kind])
        train_steps(model, losses.__next__, self.config, bar.update)
        return model, round(time.monotonic() - begin, 1)
