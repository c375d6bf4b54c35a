# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit soft_prompt` and a recipe's `audits: {soft_prompt: ...}` take."""

import math
from dataclasses import dataclass, field
from typing import Any

from ...checks import check_choice, check_whole
from ..robustness.arguments import SplitArguments


PLACES = ("start", "end")
PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "quick": {"seeds": [0], "steps": 100, "batch_size": 8, "max_items": 64},
}


@dataclass
class SoftPromptArguments(SplitArguments):
    """How many vectors are trained, on which of the rows, and how."""

    vectors: int = field(default=8, metadata={"help": "Vectors in front of each question, or behind it."})
    place: str = field(
        default="start",
        metadata={
            "help": "`start`: behind BOS, or first without one; `end`: behind the question.",
            "choices": list(PLACES),
        },
    )
    learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of Adam."})
    steps: int = field(default=200, metadata={"help": "Steps of training."})
    batch_size: int = field(default=16, metadata={"help": "Rows a step."})
    preset: str = field(
        default="full",
        metadata={
            "help": "`quick`: one seed, 100 steps of 8 rows, and 64 rows, where these are not given.",
            "choices": list(PRESETS),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("place", PLACES), ("preset", tuple(PRESETS))):
            check_choice(name, getattr(self, name), allowed)
        self.fill_in(PRESETS[self.preset])
        for name in ("vectors", "steps", "batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate}; give a number above 0.")
