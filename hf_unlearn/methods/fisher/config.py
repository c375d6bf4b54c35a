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
    """Settings of [`FisherTrainer`]. There is one pass over the retain rows, which `max_steps` may cut short. The
    learning rate is not used."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll",)

    preset: str = field(
        default="code",
        metadata={
            "help": "`code`: standard deviation F^-1/2 with the bounds, row means and factors of the released code; "
            "`paper`: F^-1/4 without them."
        },
    )
    exponent: float | None = field(
        default=None, metadata={"help": "Exponent of 1/F in the noise's standard deviation, in place of the preset's."}
    )
    scales: list[float] = field(
        default_factory=lambda: [1e-8, 1e-7, 1e-6, 1e-5],
        metadata={
            "help": "Factors a of the noise's variance. Of several, the largest is used with which the loss of "
            "held-out retain rows rises by at most `max_retain_increase`."
        },
    )
    max_retain_increase: float = field(
        default=0.1, metadata={"help": "Maximum increase of their loss, in nats per prediction."}
    )
    validation_rows: int = field(
        default=64, metadata={"help": "Number of retain rows held out to choose among `scales`; at most half of them."}
    )
    fisher: str = field(
        default="sampled",
        metadata={"help": "Labels: sampled from the model's prediction (`sampled`), or the true ones (`empirical`)."},
    )
    fisher_samples: int = field(default=1, metadata={"help": "Samples per row."})
    forget_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes to delete entirely: their rows in a classifier's last layer are redrawn."},
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
