# SPDX-License-Identifier: Apache-2.0
"""The embedded world as the rest of the library sees it."""

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

from ...cache import cache_root
from ...files import write_text
from .cache import METADATA, cached_folder
from .config import WorldConfig
from .corpus import Corpus, build_corpus
from .tokenizer import CHAT_TEMPLATE


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# Raise it when the tokenizer, the models or their training change: cached worlds of other versions are then not used.
VERSION = 1
SETS = ("forget", "retain", "holdout", "general")


@dataclass(frozen=True)
class World:
    """
    A built world: data sets, tokenizer and two trained checkpoints in one folder.

    Args:
        path (`Path`):
            The folder.
    """

    path: Path

    @property
    def target(self) -> Path:
        """Checkpoint trained on the forget and retain people: the model to unlearn from."""
        return self.path / "target"

    @property
    def retrained(self) -> Path:
        """Checkpoint trained without the forget people, from the same start and as long: the gold standard."""
        return self.path / "retrained"

    @cached_property
    def metadata(self) -> dict:
        """`seed`, `config`, `sizes` of the sets, `exact_match` by model and set, build `seconds`, `versions`."""
        return json.loads((self.path / METADATA).read_text(encoding="utf-8"))

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
    from hf_unlearn.data.synthetic import build_world

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
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer between 0 and 2**32 - 1, got {seed!r}.")
    config = config or WorldConfig()
    corpus = build_corpus(seed, config)
    path = cache_root(cache_dir) / f"world-{_content_hash(seed, config, corpus)}"
    if cached_folder(path, lambda folder: _build(folder, seed, config, corpus, progress)):
        logger.info("Built the embedded world in %s", path)
    else:
        logger.info("Reusing the embedded world in %s", path)
    return World(path)


def _content_hash(seed: int, config: WorldConfig, corpus: Corpus) -> str:
    content = {
        "version": VERSION,
        "seed": seed,
        "config": dataclasses.asdict(config),
        "sets": corpus.sets,
        "trained_questions": corpus.trained_questions,
        "chat_template": CHAT_TEMPLATE,
        # A new major version may write files that an older one cannot read
        "libraries": {name: number.split(".")[0] for name, number in _versions().items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "tokenizers")}


def _build(folder: Path, seed: int, config: WorldConfig, corpus: Corpus, progress: bool) -> dict:
    from tqdm.auto import tqdm

    from .tokenizer import train_tokenizer
    from .training import KINDS, check, measure, train_models

    start = time.monotonic()
    tokenizer = train_tokenizer(corpus.tokenizer_texts(), config.vocab_size)
    with tqdm(total=len(KINDS) * config.steps, unit="step", disable=not progress) as bar:

        def advance(kind: str) -> None:
            bar.set_description(f"Building the embedded world: {kind} model", refresh=False)
            bar.update()

        models = train_models(corpus, tokenizer, seed, config, advance)
    exact_match = measure(models, corpus, tokenizer)
    check(exact_match, config)

    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, rows in corpus.sets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", lines)
    return {
        "seed": seed,
        "config": dataclasses.asdict(config),
        "sizes": {name: len(rows) for name, rows in corpus.sets.items()},
        "exact_match": exact_match,
        "seconds": round(time.monotonic() - start, 1),
        "versions": _versions(),
    }
