# SPDX-License-Identifier: Apache-2.0
"""Settings that every method shares."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments


RETAIN_LOSSES = ("none", "nll", "kl")
REFERENCES = ("auto", "adapter", "cache", "live")
FORWARD_PASSES = ("auto", "one", "split", "packed")


def check_choice(name: str, value: Any, allowed) -> None:
    """Raises `ValueError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}.")


def check_number(name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raises `ValueError` unless `value` is a finite number in range."""
    bound = f"above {above}" if above is not None else f"at least {at_least}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    in_range = is_number and (above is None or value > above) and (at_least is None or value >= at_least)
    if not in_range:
        raise ValueError(f"{name}={value!r}; give a finite number {bound}.")


def check_whole(name: str, value: Any, *, at_least: int) -> None:
    """Raises `ValueError` unless `value` is `None` or a whole number in range."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < at_least):
        raise ValueError(f"{name}={value!r}; give a whole number of at least {at_least}, or leave it out.")


def check_patterns(name: str, patterns: Any) -> None:
    """Raises `ValueError` unless every one of `patterns` is a regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{name}: {pattern!r} is no regular expression ({error}).") from error


@dataclass
class UnlearnConfig(TrainingArguments):
    r"""Arguments of every unlearning trainer, on top of [`~transformers.TrainingArguments`].

    The objective is `forget_weight` * L_forget + `retain_weight` * L_retain. L_forget is the method's; L_retain is
    nothing, the negative log-likelihood of the retain rows (`nll`) or KL(reference || model) on them (`kl`).

    Changed defaults: `logging_steps` is 10, `learning_rate` is 1e-5.
    """

    # TrainingArguments parses JSON given on a command line for these fields only.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every X steps; below 1, a share of all steps."})

    # Model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of `from_pretrained`, where the model is given as a path or Hub id."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a model repository. Only for code you have read."}
    )
    trainable_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Regular expressions; only parameters whose name one of them matches (search) are trained."},
    )

    # Data
    max_length: int | None = field(default=1024, metadata={"help": "Longest row in tokens; the end is cut."})
    epoch_by: str = field(
        default="forget",
        metadata={"help": "The role whose rows are each seen once an epoch: a role's name or `longest`."},
    )
    allow_overlap: bool = field(default=False, metadata={"help": "Go on although forget and retain share rows."})
    pad_to_multiple_of: int | None = field(default=None, metadata={"help": "Rounds the padded width up."})

    # Objective
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget term."})
    retain_loss: str = field(default="none", metadata={"help": "Retain term: `none`, `nll` or `kl`."})
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the retain term."})
    max_forget_loss: float | None = field(
        default=None,
        metadata={"help": "Stop once the forget rows' negative log-likelihood a token (nats) is above this."},
    )

    # Reference
    reference: str = field(
        default="auto",
        metadata={
            "help": "Where the reference's predictions come from: `adapter` (PEFT, adapter off), `cache` (computed "
            "once before training and kept on disk), `live` (a frozen copy in memory), or `auto`, the cheapest."
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of cached references. Default: `$HF_UNLEARN_CACHE/reference` or in `~/.cache`."},
    )

    # Cost
    fused_losses: bool | None = field(
        default=None,
        metadata={
            "help": "Losses from hidden states and the LM head, without logits for every position. Default: where the "
            "model's head allows it; false takes the model's logits."
        },
    )
    cache_frozen: bool = field(
        default=True,
        metadata={"help": "Compute the states below the first trained layer once and keep them on disk."},
    )
    forward_passes: str = field(
        default="auto",
        metadata={
            "help": "How the rows of a step go through the model: `one` padded pass, `split` (a pass a role), "
            "`packed` (one pass without padding), or `auto`: one or split, by counted tokens."
        },
    )

    def __post_init__(self):
        check_choice("retain_loss", self.retain_loss, RETAIN_LOSSES)
        check_choice("reference", self.reference, REFERENCES)
        check_choice("forward_passes", self.forward_passes, FORWARD_PASSES)
        check_number("forget_weight", self.forget_weight, at_least=0)
        check_number("retain_weight", self.retain_weight, at_least=0)
        check_whole("max_length", self.max_length, at_least=2)
        check_whole("pad_to_multiple_of", self.pad_to_multiple_of, at_least=1)
        if self.max_forget_loss is not None:
            check_number("max_forget_loss", self.max_forget_loss, above=0)
        if isinstance(self.trainable_modules, str):
            self.trainable_modules = [self.trainable_modules]
        check_patterns("trainable_modules", self.trainable_modules or [])
        # Left to themselves, launchers on a machine without accelerators fall back to unconnected single processes.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
