# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit prompts` and a recipe's `audits: {prompts: ...}` take."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choices, check_whole
from ..robustness.arguments import RobustnessArguments, preset_field
from .transforms import QUICK_TRANSFORMS, TRANSFORMS


@dataclass
class PromptsArguments(RobustnessArguments):
    """In which ways questions are put."""

    QUICK: ClassVar[dict[str, Any]] = {"transforms": list(QUICK_TRANSFORMS), "max_items": 48}

    transforms: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Ways to ask: {', '.join(TRANSFORMS)}. Default: all for which the rows bring what is used."
        },
    )
    preset: str = preset_field(f"{', '.join(QUICK_TRANSFORMS)}, and 48 rows")
    prefill: str = field(
        default="Sure, here is the answer:",
        metadata={"help": "`prefill`: with which the model's answer begins already."},
    )
    few_shot: int = field(default=3, metadata={"help": "`few_shot`: rows shown before the question."})
    translation_column: str | None = field(
        default=None, metadata={"help": "`translation`: column with the question in another language."}
    )
    context_column: str | None = field(
        default=None,
        metadata={
            "help": "`in_context`: column with related text that does not give the answer away. Default: the answers "
            "of other rows of the group."
        },
    )
    retain_items: int = field(
        default=32, metadata={"help": "Retain rows that say whether a way to ask is too strange to be understood."}
    )
    generate: bool = field(
        default=False, metadata={"help": "Also generate answers, and count right, wrong, refused, empty and other."}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "Longest generated answer in tokens."})

    def __post_init__(self):
        super().__post_init__()
        check_choices("transforms", self.transforms or (), TRANSFORMS)
        if self.transforms is not None and not self.transforms:
            raise ValueError("transforms is empty; name some, or leave it out for all.")
        for name in ("few_shot", "retain_items", "max_new_tokens"):
            check_whole(name, getattr(self, name), at_least=1)
        if not self.prefill.strip():
            raise ValueError("prefill is empty; give the words with which the answer is to begin.")

    @property
    def named(self) -> bool:
        """Whether the transforms were chosen by name: all of these have to apply, those of a preset where they can."""
        return self.transforms is not None and not (
            self.preset == "quick" and self.transforms == list(QUICK_TRANSFORMS)
        )
