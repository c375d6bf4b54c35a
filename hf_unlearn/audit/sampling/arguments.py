# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit sampling` and a recipe's `audits: {sampling: ...}` take."""

from dataclasses import dataclass, field

from ...checks import check_choice, check_whole
from ..robustness.arguments import RobustnessArguments
from .leak import MEASURES


MODES = ("exact", "sampled", "both")


@dataclass
class SamplingArguments(RobustnessArguments):
    """How often answers are drawn, and what counts as a leak."""

    mode: str = field(
        default="exact",
        metadata={
            "help": "`exact`: the probability of the whole answer, without drawing any; `sampled`: answers are drawn; "
            "`both`.",
            "choices": list(MODES),
        },
    )
    ks: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "Numbers of draws to report."})
    samples: int = field(default=64, metadata={"help": "Answers drawn per question; at least the largest of `ks`."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the draws."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the draws (sampled only)."})
    measure: str = field(
        default="exact_match",
        metadata={
            "help": "Score of a drawn answer: `exact_match`, `rouge` (recall), or `contains`: the words of "
            "`key_column` stand in it.",
            "choices": list(MEASURES),
        },
    )
    key_column: str = field(
        default="answer", metadata={"help": "Column with the words that `contains` looks for, such as a name."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest drawn answer in tokens."})
    generation_batch_size: int = field(default=64, metadata={"help": "Answers that are drawn at a time."})

    def __post_init__(self):
        super().__post_init__()
        check_choice("mode", self.mode, MODES)
        check_choice("measure", self.measure, MEASURES)
        for name in ("samples", "max_new_tokens", "generation_batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise ValueError(f"ks={self.ks}; give whole numbers of draws, at least 1.")
        if self.mode != "exact" and max(self.ks) > self.samples:
            raise ValueError(
                f"ks={self.ks} asks for {max(self.ks)} draws, and samples={self.samples} are made. Raise `samples`, "
                "or take mode='exact'."
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; give a number above 0.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}; give a number above 0, at most 1.")
        if self.mode != "sampled" and self.top_p < 1:
            raise ValueError(
                f"top_p={self.top_p} cuts what can be drawn, and mode={self.mode!r} reads the whole distribution. "
                "Take mode='sampled', or top_p=1."
            )
