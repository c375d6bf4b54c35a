# SPDX-License-Identifier: Apache-2.0
"""Settings of Fisher forgetting."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...checks import check_choice, check_left_out, check_number, check_whole
from ...processes import shards_weights
from ...training.config import UnlearnConfig
from .noise import RULES


KINDS = ("sampled", "empirical")


@dataclass
class FisherConfig(UnlearnConfig):
    """Settings of [`FisherTrainer`]. An epoch is the one pass over the retain rows; `max_steps` may cut it short. The
    learning rate is of no use."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll",)

    preset: str = field(
        default="code",
        metadata={
            "help": "`code`: standard deviation F^-1/2 with the bounds, row means and factors of the released code; "
            "`paper`: F^-1/4 and nothing else."
        },
    )
    exponent: float | None = field(
        default=None, metadata={"help": "Of 1/F in the noise's standard deviation, in place of the preset's."}
    )
    scales: list[float] = field(
        default_factory=lambda: [1e-8, 1e-7, 1e-6, 1e-5],
        metadata={
            "help": "a: factors of the noise's variance. Of several the largest is taken with which held-out retain "
            "rows lose no more than `max_retain_increase`."
        },
    )
    max_retain_increase: float = field(
        default=0.1, metadata={"help": "What their loss may rise by, in nats a prediction."}
    )
    validation_rows: int = field(
        default=64, metadata={"help": "Retain rows held out to choose among `scales`; at most half of them."}
    )
    fisher: str = field(
        default="sampled",
        metadata={
            "help": "Labels: drawn from the model's own prediction (`sampled`), or the true ones (`empirical`)."
        },
    )
    fisher_samples: int = field(default=1, metadata={"help": "Draws a row."})
    forget_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes to delete whole: their rows of a classifier's last layer are drawn anew."},
    )
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over the retain rows: 1."})
    retain_loss: str = field(default="nll", metadata={"help": "Negative log-likelihood of the retain rows: `nll`."})

    def __post_init__(self):
        check_choice("preset", self.preset, RULES)
        check_choice("fisher", self.fisher, KINDS)
        if self.exponent is not None:
            check_number("exponent", self.exponent, above=0)
        if not self.scales:
            raise ValueError("scales is empty. Give one factor of the noise's variance, or several.")
        for scale in self.scales:
            check_number("scales", scale, at_least=0)
        self.scales = sorted(self.scales)
        check_number("max_retain_increase", self.max_retain_increase, at_least=0)
        check_whole("fisher_samples", self.fisher_samples, at_least=1)
        check_whole("validation_rows", self.validation_rows, at_least=1)
        names = ("poison_prefix", "value_norm_penalty", "max_forget_loss", "epoch_by", "num_train_epochs")
        check_left_out(self, names, "Fisher forgetting looks at each retain row once and trains nothing.")
        # One row at a time, as wide as it is; states of frozen layers are needed once.
        self.forward_passes = "split" if self.forward_passes == "auto" else self.forward_passes
        self.cache_frozen = False
        super().__post_init__()
        if self.reentrant or self.fp16 or shards_weights(self):
            raise ValueError(
                "Fisher forgetting takes gradients row by row and no optimizer steps, which reentrant checkpointing, "
                "fp16's loss scaling, DeepSpeed and FSDP do not allow. Leave them out; DDP and bf16 work."
            )
