# SPDX-License-Identifier: Apache-2.0
"""What every audit of robustness takes."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_choices, check_whole
from ...data.arguments import DataArguments
from ..arguments import ModelArguments
from .splits import SPLITS


COMPARATORS = ("auto", "retrained", "holdout", "none")
SCORES = ("probability", "exact_match", "key_probability", "known")
PRESETS = ("full", "quick")


def preset_field(quick: str) -> Any:
    """The field `preset` of an attack, with what its `QUICK` is in words."""
    told = f"`quick`: {quick}, where these are not given."
    return field(default="full", metadata={"help": told, "choices": list(PRESETS)})


@dataclass
class RobustnessArguments(DataArguments, ModelArguments):
    """Which rows are attacked and tested, and what the attacked model is compared with."""

    # Under `preset: quick`, the values of fields that are not given.
    QUICK: ClassVar[dict[str, Any]] = {}

    original_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model before unlearning: how much there was to forget."}
    )
    holdout_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows like the forget rows that no model was trained on; default: the benchmark's. They replace "
            "the retrained model where there is none."
        },
    )
    holdout_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    holdout_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    comparator: str = field(
        default="auto",
        metadata={
            "help": "What never knew the rows: the `retrained` model, or `holdout` rows; `none` reports before and "
            "after only. `auto` takes the first that is given.",
            "choices": list(COMPARATORS),
        },
    )
    scores: list[str] = field(
        default_factory=lambda: list(SCORES[:3]),
        metadata={"help": f"Scores of a row: {', '.join(SCORES)}."},
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "Column that names the person or document of a row: rows of one group are not independent. "
            "Default: the benchmark's."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of attacks that depend on chance."}
    )
    max_items: int | None = field(
        default=200, metadata={"help": "Maximum number of rows per set (drawn by the first seed)."}
    )
    audit_batch_size: int = field(default=16, metadata={"help": "Batch size of scoring."})
    max_length: int = field(default=512, metadata={"help": "Maximum row length in tokens."})
    bound: float = field(
        default=0.2, metadata={"help": "`remaining` up to which what was forgotten did not come back."}
    )
    resolution: float = field(
        default=0.15,
        metadata={"help": "A result whose interval is wider than plus or minus this, across `bound`, is unresolved."},
    )
    preset: str = preset_field("fewer rows, seeds and steps, of attacks that have them")

    def __post_init__(self):
        DataArguments.__post_init__(self)
        ModelArguments.__post_init__(self)
        check_choice("preset", self.preset, PRESETS)
        if self.preset == "quick":
            self._fill_in(self.QUICK)
        check_choice("comparator", self.comparator, COMPARATORS)
        check_choices("scores", self.scores, SCORES)
        if not self.scores:
            raise ValueError(f"scores is empty; give some of {', '.join(SCORES)}.")
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one.")
        for name, least in (("max_items", 1), ("audit_batch_size", 1), ("max_length", 2)):
            check_whole(name, getattr(self, name), at_least=least)
        for name in ("bound", "resolution"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give a number between 0 and 1.")
        if self.comparator == "retrained" and self.retrained_model_name_or_path is None:
            raise ValueError("comparator='retrained' requires `--retrained_model_name_or_path`.")

    def _fill_in(self, preset: Mapping[str, Any]) -> None:
        """Sets what a preset says, where a field still has its default."""
        for name, value in preset.items():
            default = self.__dataclass_fields__[name]
            usual = default.default_factory() if callable(default.default_factory) else default.default
            if getattr(self, name) == usual:
                setattr(self, name, copy(value))


@dataclass
class SplitArguments(RobustnessArguments):
    """Attacks that are made with some of the forget rows and tested on the others."""

    attacker_share: float = field(
        default=0.5, metadata={"help": "Share of the forget rows that the attack is made with."}
    )
    split: str = field(
        default="within",
        metadata={
            "help": "`within`: it is made with some rows of every group; `across`: with whole groups.",
            "choices": [*SPLITS],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_choice("split", self.split, SPLITS)
