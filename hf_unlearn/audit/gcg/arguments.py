# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit gcg` and a recipe's `audits: {gcg: ...}` take."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_whole
from ...data.triggers import LOCATIONS
from ..robustness.arguments import SplitArguments, preset_field


@dataclass
class GcgArguments(SplitArguments):
    """How long a prefix is searched, and what it is compared with."""

    QUICK: ClassVar[dict[str, Any]] = {
        "seeds": [0],
        "budget_tokens": 200_000,
        "search_rows": 8,
        "width": 16,
        "max_items": 32,
    }

    budget_tokens: int = field(
        default=2_000_000,
        metadata={"help": "Tokens through the model that each search may take; those of gradients count three times."},
    )
    max_tokens: int = field(default=16, metadata={"help": "Longest prefix in tokens."})
    width: int = field(default=32, metadata={"help": "Prefixes that are tried at each step."})
    top_k: int = field(default=64, metadata={"help": "Tokens at each place, by gradient, of which swaps are drawn."})
    search_rows: int = field(
        default=16, metadata={"help": "Rows that a prefix is searched on, at most; the others of its share stay idle."}
    )
    location: str = field(
        default="start",
        metadata={"help": "Place in the question.", "choices": [*LOCATIONS]},
    )
    random_prefixes: int = field(
        default=99, metadata={"help": "Random prefixes of the same length that it is compared with, at least 99."}
    )
    preset: str = preset_field("one seed, 200,000 tokens, 8 rows to search on, 16 prefixes a step and 32 rows")

    def __post_init__(self):
        super().__post_init__()
        check_choice("location", self.location, LOCATIONS)
        for name in ("budget_tokens", "max_tokens", "width", "top_k", "search_rows"):
            check_whole(name, getattr(self, name), at_least=1)
        # With fewer, no prefix could be told from chance.
        check_whole("random_prefixes", self.random_prefixes, at_least=99)
