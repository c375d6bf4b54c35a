# SPDX-License-Identifier: Apache-2.0
"""Amnesiac unlearning (https://huggingface.co/papers/2010.10981): see `docs/baselines.md`."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from transformers import TrainerCallback

from ...checks import check_choice, check_left_out
from ...data.pairing import RolePairs
from ...data.role_table import FORGET, RETAIN
from ...data.seeds import data_seed
from ...families.base import CLASSIFIER
from ...forward.role_rows import RoleRows
from ...processes import shards_weights
from ...training.config import UnlearnConfig
from ...training.trainer import UnlearnTrainer
from ..relabel import SOURCES, relabelled_answers, relabelled_classes
from .sensitive_rows import ClassifierRows, TokenRows
from .step_record import StepRecord


logger = logging.getLogger(__name__)

VARIANTS = ("subtract", "relabel")


@dataclass
class AmnesiacConfig(UnlearnConfig):
    """Settings of [`AmnesiacTrainer`]. With `subtract` an epoch sees every retain row once, with `relabel` every
    forget row; `num_train_epochs: 0` subtracts and repairs nothing."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll",)
    TAKES_NO_EPOCHS: ClassVar[bool] = True

    variant: str = field(
        default="subtract",
        metadata={
            "help": "`subtract`: subtract the recorded steps that saw forget rows, then train on retain rows. "
            "`relabel`: train on forget rows with random wrong labels and on retain rows; for any checkpoint."
        },
    )
    record_path: str | None = field(
        default=None,
        metadata={"help": "Folder of the original training's record, made by `AmnesiacRecorder`."},
    )
    relabel_with: str = field(
        default=FORGET,
        metadata={
            "help": "Source of a language model's wrong answers: other `forget` rows, `retain` rows, or `refusal`."
        },
    )
    retain_loss: str = field(default="nll", metadata={"help": "Negative log-likelihood of the retain rows: `nll`."})

    def __post_init__(self):
        check_choice("variant", self.variant, VARIANTS)
        check_choice("relabel_with", self.relabel_with, SOURCES)
        if self.variant == "relabel" and self.num_train_epochs == 0 and self.max_steps < 0:
            raise ValueError("num_train_epochs=0 trains nothing with variant='relabel'. Give more than 0.")
        names = ["poison_prefix", "value_norm_penalty"]
        if self.variant == "subtract":
            names += ["relabel_with", "max_forget_loss", "epoch_by", "forget_weight"]
            # What is taken back may lie below the first layer that is repaired.
            self.cache_frozen = False
        else:
            names += ["record_path"]
        check_left_out(self, names, f"of no use with variant={self.variant!r}.")
        super().__post_init__()
        if self.variant == "subtract" and shards_weights(self):
            raise ValueError(
                "variant='subtract' changes whole weights, and DeepSpeed and FSDP keep them in parts. Take one "
                "process or DDP; with num_train_epochs=0 the result can be repaired by another run."
            )


class AmnesiacTrainer(UnlearnTrainer):
    r"""`subtract`: \\( w - \sum_s \Delta_s \\) over the steps of the original's training that saw forget rows, as
    [`AmnesiacRecorder`] recorded them; then cross-entropy on retain rows repairs other effects of their removal.

    `relabel`: cross-entropy on forget rows with wrong labels, drawn once, and on retain rows.
    """

    config_class = AmnesiacConfig
    method = "amnesiac"
    paper = "2010.10981"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.variant == "subtract":
            self.add_callback(Subtraction(self))

    def check_rows(self, args: AmnesiacConfig, roles, processor) -> None:
        if args.variant == "relabel":
            return
        self.record, rows = StepRecord(args.record_path), roles[FORGET]
        if self.family.name == CLASSIFIER:
            names = ClassifierRows(rows, self.family.collator(processor, (), args.max_length)).names
        else:
            names = TokenRows(rows["input_ids"]).names
        self.tainted = self.record.tainted(names)

    @classmethod
    def trained_roles_of(cls, args):
        return (RETAIN,) if args.variant == "subtract" else super().trained_roles_of(args)

    @classmethod
    def replaces_answers(cls, args) -> bool:
        return args.variant == "relabel"

    def make_pairs(self, roles, args: AmnesiacConfig, processor) -> RolePairs:
        seed = data_seed(args)
        if args.variant == "subtract":
            return RolePairs({RETAIN: roles[RETAIN]}, seed=seed, epoch_by=RETAIN)
        if self.family.name == CLASSIFIER:
            forget = relabelled_classes(roles[FORGET], len(self.family.classes), seed)
        else:
            source = args.relabel_with
            pool = None if source == "refusal" else roles[source]
            forget = relabelled_answers(roles[FORGET], pool, source, processor, args.max_length, seed)
        return RolePairs({**roles, FORGET: forget}, seed=seed, epoch_by=args.epoch_by)

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return rows.nll

    @property
    def changes_at_end(self) -> bool:
        return self.args.variant == "subtract" and self.state.global_step == 0


class Subtraction(TrainerCallback):
    """Takes back the recorded steps, before the first step or, without any, at the end; once.

    Args:
        trainer ([`AmnesiacTrainer`]): the run.
    """

    def __init__(self, trainer):
        self.trainer, self.done = trainer, False

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step or self.done:
            return
        self.done = True
        self.trainer.record.subtract(self.trainer.model, self.trainer.tainted)
        logger.info("%d recorded steps were taken back.", len(self.trainer.tainted))

    on_train_end = on_epoch_begin
