# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit perplexity` and a recipe's `audits: {perplexity: ...}` take."""

from dataclasses import dataclass, field

from ...checks import check_whole
from ..arguments import ModelArguments


@dataclass
class PerplexityArguments(ModelArguments):
    """Which texts, and how many of their tokens go through the model."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "General text (`text`, or any TRL type): a file, a folder or a Hub id."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    max_items: int | None = field(
        default=None, metadata={"help": "Maximum number of rows (drawn by `seed`); all by default."}
    )
    max_length: int = field(
        default=1024, metadata={"help": "Maximum row length in tokens; longer texts become several rows."}
    )
    batch_size: int = field(default=32, metadata={"help": "Batch size."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice of rows."})

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_name is None:
            raise ValueError("`--dataset_name` is missing. Give rows of general text: a file, a folder or a Hub id.")
        for name, least in (("max_items", 1), ("max_length", 2), ("batch_size", 1)):
            check_whole(name, getattr(self, name), at_least=least)
