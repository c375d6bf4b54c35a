# SPDX-License-Identifier: Apache-2.0
"""Settings of SCRUB and its published values."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_left_out, check_number, check_whole
from ...processes import shards_weights
from ...training.config import UnlearnConfig
from ..teacher import TeacherArguments


WARMUPS = ("min_first", "param_noise", "dropout", "none")
REWIND_ERRORS = ("loss", "error")
SGD = {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 5e-4}
# Of the published notebooks. Their Adam has L2 decay; Trainer's has it apart from the gradient.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"learning_rate": 5e-4, "weight_decay": 0.1, "lr_decay_epochs": [5, 8, 9]},
    "large": {
        **SGD,
        "learning_rate": 5e-4,
        "temperature": 4.0,
        "alpha": 0.001,
        "gamma": 0.99,
        "msteps": 2,
        "num_train_epochs": 3,
        "lr_decay_epochs": [3, 5, 9],
    },
    "mia": {
        **SGD,
        "learning_rate": 5e-4,
        "temperature": 4.0,
        "num_train_epochs": 5,
        "lr_decay_epochs": [3, 5, 9],
    },
}
# Those of `small`, but for the rate, its decay and what Trainer has defaults for.
DEFAULTS: dict[str, Any] = {
    "alpha": 0.5,
    "gamma": 1.0,
    "temperature": 2.0,
    "msteps": 3,
    "num_train_epochs": 10,
    "learning_rate": 1e-5,
    "weight_decay": 0.0,
    "optim": "adamw_torch",
    "lr_decay_epochs": [],
}


def _preset(name: str, help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} Default: the preset's, or {DEFAULTS[name]}."})


@dataclass
class ScrubConfig(TeacherArguments, UnlearnConfig):
    """Settings of [`ScrubTrainer`]. Fields that are left out are the preset's.

    An epoch is one of SCRUB's: all forget rows, while there are max steps left, and all retain rows. `max_steps` may
    only cut the run short.
    """

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll",)

    preset: str | None = field(
        default=None, metadata={"help": "Published values for arguments left out: `small`, `large` or `mia`."}
    )
    learning_rate: float | None = _preset("learning_rate", "Initial learning rate.")
    num_train_epochs: float | None = _preset("num_train_epochs", "Epochs, a whole number.")
    weight_decay: float | None = _preset("weight_decay", "Weight decay.")
    optim: str | None = _preset("optim", "Optimizer of both phases.")
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Schedule of the learning rate if `lr_decay_epochs` is empty."}
    )
    retain_loss: str = field(default="nll", metadata={"help": "Cross-entropy in the retain phases: `nll`."})
    alpha: float | None = _preset("alpha", "Weight of the divergence from the teacher on retain rows.")
    gamma: float | None = _preset("gamma", "Weight of the cross-entropy on retain rows.")
    temperature: float | None = _preset("temperature", "T: divides both models' logits in the divergence.")
    msteps: int | None = _preset("msteps", "Epochs, the first ones, that have a forget phase.")
    lr_decay_epochs: list[int] | None = field(
        default=None,
        metadata={
            "help": "Epochs after each of which the learning rate is multiplied by `lr_decay_rate`. Default: the "
            "preset's, or none."
        },
    )
    lr_decay_rate: float = field(default=0.1, metadata={"help": "Factor of that decay."})
    forget_batch_size: int | None = field(
        default=None,
        metadata={"help": "Forget rows per batch and device; at most `per_device_train_batch_size`, the default."},
    )
    scrub_warmup: str = field(
        default="min_first",
        metadata={
            "help": "What makes the student differ from its teacher before the first max steps: retain rows first in "
            "every epoch (`min_first`), noise on the weights (`param_noise`), `dropout` in the forget phases, "
            "or `none`, for models with dropout, which then stays on."
        },
    )
    warmup_noise: float = field(
        default=0.01, metadata={"help": "Noise of `param_noise`, as a share of each tensor's root mean square."}
    )
    warmup_dropout: float = field(
        default=0.1, metadata={"help": "Share of the embeddings' entries that `dropout` sets to 0."}
    )
    max_divergence: float | None = field(
        default=None, metadata={"help": "A forget batch whose mean divergence exceeds this has no gradient."}
    )
    rewind: bool = field(
        default=False,
        metadata={
            "help": "Save the weights of every epoch, and end with those whose error on forget rows is nearest to "
            "that on unseen rows."
        },
    )
    rewind_error: str = field(
        default="loss",
        metadata={"help": "Error that `rewind` compares: the `loss`, or the share of wrong predictions (`error`)."},
    )

    def __post_init__(self):
        if self.preset is not None:
            check_choice("preset", self.preset, PRESETS)
        preset = dict(PRESETS.get(self.preset, {}))
        momentum = preset.pop("optim_args", None)
        if self.optim_args is None and self.optim in (None, preset.get("optim")):
            self.optim_args = momentum
        for name, value in (DEFAULTS | preset).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        names = ("poison_prefix", "value_norm_penalty", "max_forget_loss", "epoch_by")
        check_left_out(self, names, "SCRUB's forget and retain rows have phases of their own (see `max_divergence`).")
        for name in ("alpha", "gamma", "warmup_noise", "warmup_dropout"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("temperature", "lr_decay_rate"):
            check_number(name, getattr(self, name), above=0)
        check_choice("scrub_warmup", self.scrub_warmup, WARMUPS)
        check_choice("rewind_error", self.rewind_error, REWIND_ERRORS)
        if self.max_divergence is not None:
            check_number("max_divergence", self.max_divergence, above=0)
        self._check_epochs()
        # Rows of one role only are in a batch; dropout is where states of frozen layers would be taken from disk.
        self.forward_passes = "one" if self.forward_passes == "auto" else self.forward_passes
        self.cache_frozen = self.cache_frozen and self.scrub_warmup != "dropout"
        # Without another warmup, the model's own dropout is what makes the student differ from its teacher.
        self.disable_dropout = self.disable_dropout and self.scrub_warmup != "none"
        super().__post_init__()
        self._check_batches()
        self._check_engine()

    def _check_epochs(self) -> None:
        epochs = self.num_train_epochs
        if isinstance(epochs, bool) or epochs != int(epochs) or epochs < 1:
            raise ValueError(f"num_train_epochs={epochs!r}; SCRUB takes whole epochs, at least 1.")
        check_whole("msteps", self.msteps, at_least=1)
        most = int(epochs) - (self.scrub_warmup == "min_first")
        if self.msteps > most:
            raise ValueError(
                f"msteps={self.msteps} of num_train_epochs={int(epochs)}; give at most {most} with scrub_warmup="
                f"{self.scrub_warmup!r}, so that the last epoch ends with retain rows."
            )
        if self.warmup_dropout >= 1:
            raise ValueError(f"warmup_dropout={self.warmup_dropout!r} is a share; give less than 1.")
        if self.lr_decay_epochs and self.lr_scheduler_type != "constant":
            raise ValueError(
                f"lr_decay_epochs={self.lr_decay_epochs} and lr_scheduler_type={self.lr_scheduler_type!r} both decide "
                "the learning rate. Give one of them (`lr_decay_epochs: []` unsets a preset's)."
            )

    def _check_batches(self) -> None:
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size changes the size of a batch, and SCRUB's phases are laid out by it. Give "
                "per_device_train_batch_size alone."
            )
        check_whole("forget_batch_size", self.forget_batch_size, at_least=1)
        if (self.forget_batch_size or 0) > self.per_device_train_batch_size:
            raise ValueError(
                f"forget_batch_size={self.forget_batch_size} is above per_device_train_batch_size="
                f"{self.per_device_train_batch_size}, the places of a batch. Give at most that."
            )

    def _check_engine(self) -> None:
        asked = [name for name in ("rewind",) if getattr(self, name)]
        asked += ["scrub_warmup='param_noise'"] * (self.scrub_warmup == "param_noise")
        if asked and shards_weights(self):
            raise ValueError(
                f"{', '.join(asked)}: changes whole weights in the middle of a run, and DeepSpeed and FSDP keep them "
                "in parts. Take one process or DDP, or leave it out."
            )
