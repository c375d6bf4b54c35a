# SPDX-License-Identifier: Apache-2.0
"""Fields that say where rows come from."""

from dataclasses import dataclass, field
from typing import Any

from .chosen_rows import read_where


@dataclass
class DataArguments:
    """Where the rows come from: a benchmark, or one's own forget and retain sets."""

    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "`tofu`, `tofu_mini`, `rwku`, `vqa_v2`, or `world` and `vqa_world` (embedded, no download).",
            "aliases": ["--suite"],
        },
    )
    benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder with the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(
        default=None,
        metadata={
            "help": "The benchmark's forget split, for instance `forget01` of TOFU, or the corpus of RWKU to train on."
        },
    )
    forget_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "RWKU targets to forget, by name or id (`1_Stephen_King`), or authors of `tofu_mini` by number."
        },
    )
    forget_dataset: str | None = field(
        default=None, metadata={"help": "Your forget rows: a file, a folder or a Hub id."}
    )
    forget_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    forget_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    forget_where: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keep only the forget rows, trained on and audited, that have these values: `{person: Ada}`, or "
            "`{person: [Ada, Bob]}` for any of several."
        },
    )
    retain_dataset: str | None = field(
        default=None, metadata={"help": "Your retain rows: a file, a folder or a Hub id."}
    )
    retain_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    retain_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    chunk_text: bool = field(
        default=False,
        metadata={"help": "Split your rows of `text` into rows of `max_length` tokens, instead of truncating them."},
    )

    def __post_init__(self):
        self.forget_where = read_where(self.forget_where)
        if (self.benchmark is None) == (self.forget_dataset is None):
            raise ValueError(
                f"Got benchmark={self.benchmark!r} and forget_dataset={self.forget_dataset!r}. Give exactly one: a "
                "benchmark's name, or your own rows (`--benchmark null` unsets a recipe's)."
            )
        own, benchmarks = ("retain_dataset", "chunk_text"), ("benchmark_path", "forget_split", "forget_targets")
        given = [name for name in (own if self.forget_dataset is None else benchmarks) if getattr(self, name)]
        if given:
            raise ValueError(
                f"{' and '.join(given)} would be ignored with "
                f"{'benchmark' if self.forget_dataset is None else 'forget_dataset'}. Leave out one or the other."
            )
