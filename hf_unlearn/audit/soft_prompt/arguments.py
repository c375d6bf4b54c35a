# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit soft_prompt` and a recipe's `audits: {soft_prompt: ...}` take."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_whole
from ..robustness.arguments import SplitArguments, preset_field


PLACES = ("start", "end")


@dataclass
class SoftPromptArguments(SplitArguments):
    """How many vectors are trained, on which of the rows, and how."""

    QUICK: ClassVar[dict[str, Any]] = {"seeds": [0], "steps": 100, "batch_size": 8, "max_items": 64}

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
    preset: str = preset_field("one seed, 100 steps of 8 rows, and 64 rows")

    def __post_init__(self):
        super().__post_init__()
        check_choice("place", self.place, PLACES)
        for name in ("vectors", "steps", "batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate}; give a number above 0.")
