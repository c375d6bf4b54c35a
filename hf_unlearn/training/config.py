# SPDX-License-Identifier: Apache-2.0
"""Settings that every method shares."""

import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from ..addons.average import AverageArguments
from ..addons.fila import LoraInitArguments
from ..addons.gradient_conflict import GradientConflictArguments
from ..addons.l1 import L1Arguments
from ..addons.lat.arguments import LATArguments
from ..addons.masks.arguments import MaskArguments
from ..addons.orthogonal import OrthogonalArguments
from ..addons.poison import PoisonArguments
from ..addons.repulsion import RepulsionArguments
from ..addons.settings import addons_of, check_settings, kept_roles_of
from ..addons.steps.arguments import SAMArguments, SmoothingArguments
from ..addons.value_norms.arguments import ValueNormArguments
from ..checks import check_choice, check_number, check_patterns, check_whole
from ..data.role_table import tied_to
from ..families.classifier.arguments import ClassifierArguments
from ..hub.card import check_template
from ..hub.hub_trainer import check_hub
from .addon_checks import check_engine, settle_ddp
from .arguments_check import check_given, check_read


REFERENCES = ("auto", "adapter", "cache", "live")
FORWARD_PASSES = ("auto", "one", "split", "packed")


@dataclass
class UnlearnConfig(
    ClassifierArguments,
    PoisonArguments,
    ValueNormArguments,
    LoraInitArguments,
    OrthogonalArguments,
    RepulsionArguments,
    GradientConflictArguments,
    SAMArguments,
    SmoothingArguments,
    LATArguments,
    L1Arguments,
    # Hooks are called in this order: masked weights are put back after the penalty, and before they are averaged.
    MaskArguments,
    AverageArguments,
    TrainingArguments,
):
    r"""Arguments of every unlearning trainer, on top of [`~transformers.TrainingArguments`].

    The objective is `forget_weight` * L_forget + `retain_weight` * L_retain. L_forget is the method's; L_retain is
    0 (`none`), the negative log-likelihood of the retain rows (`nll`) or KL(reference || model) on them (`kl`).
    Poisoned rows ([`PoisonArguments`]), if any, are trained like retain rows, with `poison_weight`; a value-norm
    penalty ([`ValueNormArguments`]) and other add-ons (docs/addons.md) may be added.

    Changed defaults: `logging_steps` is 10, `learning_rate` is 1e-5, `logging_nan_inf_filter` is off: it synchronises
    with the device at every batch, and a non-finite loss ends the run.
    """

    # What `retain_loss` may be; a method may have a retain term of its own.
    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("none", "nll", "kl")
    # Whether retain rows are read, if there are any, although no term trains on them.
    READS_RETAIN: ClassVar[bool] = False
    # Whether a run without a step changes the model all the same.
    TAKES_NO_EPOCHS: ClassVar[bool] = False
    # Field -> what it is for: a name in `unused.CONDITIONS`. A method may say the same of its own fields.
    USED_WITH: ClassVar[dict[str, str]] = {
        "retain_weight": "a retain term",
        "allow_overlap": "a retain term",
        "reference": "a reference",
        "reference_cache_dir": "a cached reference",
    }
    # TrainingArguments parses JSON given on a command line for these fields only.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "value_norm_targets",
    ]

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every X steps; below 1, a share of all steps."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Log a mean in place of non-finite losses. Off: these end the run."},
    )

    # Model
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of `from_pretrained`, if the model is given as a path or Hub id."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of a model repository. Only for code you have read."}
    )
    trainable_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Regular expressions; only parameters whose name matches one of them (search) are trained."},
    )

    untie_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Give a tied LM head its own weights before training, so that `trainable_modules` can train head "
            "or embedding alone. The saved model is larger by these weights."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "No dropout in training, also in adapters, so that the policy equals its reference before the "
            "first update. Dropout is restored after training."
        },
    )

    # Data
    max_length: int | None = field(
        default=1024, metadata={"help": "Maximum row length in tokens; longer rows are truncated at the end."}
    )
    epoch_by: str = field(
        default="forget",
        metadata={"help": "The role whose rows are each seen once per epoch: a role's name or `longest`."},
    )
    allow_overlap: bool = field(default=False, metadata={"help": "Continue although forget and retain rows overlap."})
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad batches to a multiple of this length."}
    )

    # Objective
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget term."})
    retain_loss: str | None = field(
        default=None,
        metadata={"help": "Retain term: `none`, `nll` or `kl`; by default `nll` if there are retain rows."},
    )
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the retain term."})
    max_forget_loss: float | None = field(
        default=None,
        metadata={"help": "Stop once the forget rows' negative log-likelihood per token (nats) exceeds this."},
    )

    # Reference
    reference: str = field(
        default="auto",
        metadata={
            "help": "Source of the reference's predictions: `adapter` (PEFT, adapter off), `cache` (computed once "
            "before training and kept on disk), `live` (a frozen copy in memory), or `auto`, the cheapest."
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of cached references. Default: `$HF_UNLEARN_CACHE/reference` or in `~/.cache`."},
    )

    # Model card
    model_card_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template of the model card, in place of the default one."},
    )

    # Cost
    fused_losses: bool | None = field(
        default=None,
        metadata={
            "help": "Compute losses from hidden states and the LM head, without logits for every position. Default: "
            "if the model's head allows it; false uses the model's logits."
        },
    )
    cache_frozen: bool = field(
        default=True,
        metadata={"help": "Compute the states below the first trained layer once and keep them on disk."},
    )
    forward_passes: str = field(
        default="auto",
        metadata={
            "help": "Forward passes of a step: `one` padded pass, `split` (a pass per role), `packed` (one pass "
            "without padding), or `auto`: one or split, whichever has fewer tokens."
        },
    )

    def __post_init__(self):
        check_given(self)
        # TrainingArguments fills it in, by a metric's name alone.
        self.asked_greater_is_better = self.greater_is_better
        if self.retain_loss is not None:
            check_choice("retain_loss", self.retain_loss, self.RETAIN_LOSSES)
        check_choice("reference", self.reference, REFERENCES)
        check_choice("forward_passes", self.forward_passes, FORWARD_PASSES)
        check_number("learning_rate", self.learning_rate, at_least=0)
        check_number("forget_weight", self.forget_weight, at_least=0)
        check_number("retain_weight", self.retain_weight, at_least=0)
        check_whole("max_length", self.max_length, at_least=2)
        check_whole("pad_to_multiple_of", self.pad_to_multiple_of, at_least=1)
        if self.max_forget_loss is not None:
            check_number("max_forget_loss", self.max_forget_loss, above=0)
        if isinstance(self.trainable_modules, str):
            self.trainable_modules = [self.trainable_modules]
        check_patterns("trainable_modules", self.trainable_modules or [])
        self.check_classifier()
        check_settings(self)
        check_template(self.model_card_template)
        # Left to themselves, launchers on a machine without accelerators fall back to unconnected single processes.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        check_read(self)
        addons = addons_of(self)
        check_engine(self, addons)
        if self.torch_compile and self.fused_losses is not False:
            raise ValueError(
                "torch_compile cannot trace the fused losses, which stand in for the head. Pass fused_losses=False, "
                "or leave torch_compile out."
            )
        settle_ddp(self, addons)
        check_hub(self)

    def settled(self, retain_rows: bool, alternate_rows: bool = False) -> "UnlearnConfig":
        """These settings with a `retain_loss`; a copy where it was left out.

        Args:
            retain_rows (`bool`): whether retain rows are given. Who gives rows wants them trained on.
            alternate_rows (`bool`): whether alternates are given, for methods that read them only then.
        """
        if self.retain_loss is not None:
            return self
        settled = copy.copy(self)
        settled.retain_loss = "nll" if retain_rows else "none"
        check_settings(settled)
        return settled

    @property
    def reentrant(self) -> bool:
        """Whether activation checkpointing is reentrant, which cuts gradients of what is taken inside the model."""
        asked = (self.activation_checkpointing_kwargs, self.gradient_checkpointing_kwargs)
        return any((kwargs or {}).get("use_reentrant") for kwargs in asked)

    @property
    def kept_terms(self) -> dict[str, str]:
        """Roles that are to stay as they are, and their terms."""
        return {"retain": self.retain_loss} | {role: term for role, (term, _) in kept_roles_of(self).items()}

    def weight_of(self, role: str) -> float:
        """The weight of a role's term in the objective."""
        role = tied_to(role) or role
        own = {name: weight for name, (_, weight) in kept_roles_of(self).items()}
        weight = ({"forget": self.forget_weight, "retain": self.retain_weight} | own)[role]
        return self.retain_weight if weight is None else weight

    @classmethod
    def own_fields(cls) -> list[str]:
        """Names of the fields that a method adds to those of every method."""
        return [own.name for own in fields(cls) if own.name not in UnlearnConfig.__dataclass_fields__]
