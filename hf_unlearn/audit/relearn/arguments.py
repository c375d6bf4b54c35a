# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit relearn` and a recipe's `audits: {relearn: ...}` take."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_whole
from ..robustness.arguments import SplitArguments, preset_field
from ..robustness.rows import GROUPS


DATA = ("split", "teach", "related", "unrelated", "retain", "holdout")
OWN_ROWS = ("related", "unrelated")
ADAPTERS = ("lora", "none")
# By adapter: too weak for most models, middle, and so strong that the original may suffer.
RATES = {"lora": [5e-5, 2e-4, 1e-3], "none": [5e-6, 2e-5, 1e-4]}
QUICK_RATES = {"lora": [5e-4], "none": [5e-5]}
# Asking takes as long as some steps of training.
QUICK_STEPS = [4, 16]


@dataclass
class RelearnArguments(SplitArguments):
    """What the attacker trains on, and how."""

    QUICK: ClassVar[dict[str, Any]] = {"seeds": [0], "max_steps": 48, "eval_steps": QUICK_STEPS, "max_items": 64}

    data: str = field(
        default="split",
        metadata={
            "help": "What the attacker trains on. `split`: some forget rows, tested on the others; `teach`: all of "
            "them, tested on the same; `related` and `unrelated`: `relearn_dataset`; `retain`, `holdout`: half of "
            "these rows.",
            "choices": list(DATA),
        },
    )
    relearn_dataset: str | None = field(
        default=None, metadata={"help": "The attacker's rows: a file, a folder or a Hub id."}
    )
    relearn_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    relearn_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    fact_by: str | None = field(
        default=None,
        metadata={
            "help": "Column that names the fact of a row: its wordings are either all shown or all tested. Default: "
            "rows of a group with one answer are one fact. Without `group_by` its rows are a group, too."
        },
    )
    adapter: str = field(
        default="lora",
        metadata={
            "help": "`lora` trains an adapter of all linear layers but the head; `none` all weights.",
            "choices": list(ADAPTERS),
        },
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=128, metadata={"help": "Its update is scaled by `lora_alpha / lora_r`."})
    learning_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Learning rates of AdamW: one that is too low finds nothing, one that damages the original model "
            f"is left out. Default: {RATES['lora']} with an adapter, {RATES['none']} without."
        },
    )
    max_steps: int = field(default=100, metadata={"help": "Steps of the attack."})
    eval_steps: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 100],
        metadata={"help": "Steps after which the rows are asked about; those up to `max_steps`, and the last one."},
    )
    batch_size: int = field(default=8, metadata={"help": "Rows a step."})
    warmup_steps: int = field(default=5, metadata={"help": "Steps in which the rate grows; it is constant after."})
    shuffled: bool = field(
        default=False,
        metadata={
            "help": "Also attacks with the answers permuted among the attacker's rows: what the training alone brings "
            "back, whatever it says. Takes as long again."
        },
    )
    preset: str = preset_field(
        "one seed, one learning rate, 48 steps, asked about after 4, 16 and 48 of them, and 64 rows"
    )

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("data", DATA), ("adapter", ADAPTERS)):
            check_choice(name, getattr(self, name), allowed)
        if self.learning_rates is None:
            self.learning_rates = list((QUICK_RATES if self.preset == "quick" else RATES)[self.adapter])
        if not self.learning_rates or any(not (math.isfinite(rate) and rate > 0) for rate in self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates}; give at least one number above 0.")
        for name in ("lora_r", "lora_alpha", "max_steps", "batch_size"):
            check_whole(name, getattr(self, name), at_least=1)
        check_whole("warmup_steps", self.warmup_steps, at_least=0)
        for step in self.eval_steps:
            check_whole("eval_steps", step, at_least=0)
        # Step 0 is the model as it is, which is measured anyway.
        self.eval_steps = sorted({*(step for step in self.eval_steps if 0 < step < self.max_steps), self.max_steps})
        if self.fact_by is not None and self.group_by is None and self.benchmark not in GROUPS:
            # The wordings of one fact are no independent rows, in the split and in the interval.
            self.group_by = self.fact_by
        if (self.data in OWN_ROWS) != (self.relearn_dataset is not None):
            needs = "requires" if self.data in OWN_ROWS else "takes no"
            raise ValueError(
                f"data={self.data!r} {needs} `--relearn_dataset`: it is the attacker's rows with data='related' or "
                "data='unrelated'."
            )
        if self.comparator == "auto" and self.retrained_model_name_or_path is not None:
            # Holdout rows take an attack of their own, which is not needed then.
            self.comparator = "retrained"
