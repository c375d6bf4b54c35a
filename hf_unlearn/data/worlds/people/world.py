# SPDX-License-Identifier: Apache-2.0
"""The embedded world as the rest of the library sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ....files import write_text
from ..base import KINDS, BuiltWorld, WorldBuilder
from .config import WorldConfig
from .corpus import Corpus, build_corpus
from .tokenizer import CHAT_TEMPLATE


if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SETS = ("forget", "retain", "holdout", "general")


@dataclass(frozen=True)
class World(BuiltWorld):
    """A built world of people: its forget people are known to the target model only. `metadata["exact_match"]` has
    the fraction of the answers that each model reproduces, by set."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of both models."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.target)

    def dataset(self, name: str) -> Dataset:
        """
        One of the data sets.

        Args:
            name (`str`):
                `"forget"`, `"retain"` or `"holdout"` (people no model was trained on), with columns `question`,
                `answer`, `paraphrased_question`, `paraphrased_answer`, `perturbed_answer`, `person` and `attribute`;
                or `"general"`, with column `text`.

        Returns:
            `datasets.Dataset`: the rows.

        Raises:
            ValueError: If there is no such set.
        """
        if name not in SETS:
            raise ValueError(f"Unknown data set {name!r} of the embedded world, choose one of {', '.join(SETS)}.")
        from datasets import Dataset

        lines = (self.path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return Dataset.from_list([json.loads(line) for line in lines])


def build_world(
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
    config: WorldConfig | None = None,
) -> World:
    """
    Build the embedded world, or reuse it if it was built before.

    Needs no download. Every process of a distributed job may call it: one builds, the others wait.

    ```python
    from hf_unlearn.data.worlds.people import build_world

    world = build_world()
    model = AutoModelForCausalLM.from_pretrained(world.target)
    forget = world.dataset("forget")
    ```

    Args:
        seed (`int`, *optional*, defaults to 0):
            Decides the people, the facts and the models' start.
        cache_dir (`str` or `Path`, *optional*):
            Where worlds are kept. Defaults to `$HF_UNLEARN_CACHE`, else `~/.cache/hf_unlearn`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar while building.
        config (`WorldConfig`, *optional*):
            Other sizes than the defaults.

    Returns:
        `World`: the world.

    Raises:
        ValueError: If the seed or the config is unusable.
        RuntimeError: If the trained models miss what the config demands; nothing is cached then.
    """
    return World(PeopleBuilder(seed, config or WorldConfig()).build(cache_dir, progress))


class PeopleBuilder(WorldBuilder):
    """Fictional people, and two Llamas."""

    title, prefix, version, scored = "embedded world", "world", 1, "exact_match"
    libraries = ("torch", "transformers", "tokenizers")
    complaint = "the {kind} model knows {score:.1%} of the {name} answers"
    config: WorldConfig

    @cached_property
    def corpus(self) -> Corpus:
        return build_corpus(self.seed, self.config)

    @property
    def sets(self) -> dict[str, list[dict]]:
        return self.corpus.sets

    def content(self) -> dict:
        asked = self.corpus.trained_questions
        return {"sets": self.sets, "trained_questions": asked, "chat_template": CHAT_TEMPLATE}

    @cached_property
    def processor(self) -> PreTrainedTokenizerFast:
        from .tokenizer import train_tokenizer

        return train_tokenizer(self.corpus.tokenizer_texts(), self.config.vocab_size)

    def initial_model(self) -> LlamaForCausalLM:
        from .training import initial_model

        return initial_model(self.processor, self.seed, self.config)

    def losses(self, model: LlamaForCausalLM, sets: tuple[str, ...]) -> Iterator[torch.Tensor]:
        from .training import encode_corpus, losses

        rows = encode_corpus(self.corpus, sets, self.processor)
        return losses(model, rows, self.processor.pad_token_id, self.seed, self.config)

    def scores(self, model: LlamaForCausalLM) -> dict[str, float]:
        from .training import measure

        return measure(model, self.corpus, self.processor)

    @classmethod
    def bounds(cls, config: WorldConfig) -> list[tuple[str, str, float, float]]:
        known = [(kind, name, config.min_known, 1.0) for kind, sets in KINDS.items() for name in sets]
        return [*known, ("retrained", "forget", 0.0, config.max_unseen)]

    def save_set(self, name: str, folder: Path) -> None:
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in self.sets[name]))
