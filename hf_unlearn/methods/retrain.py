# SPDX-License-Identifier: Apache-2.0
"""Training on the retain rows alone: what every other method is judged against."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..checks import check_choice, check_left_out
from ..data.pairing import RolePairs
from ..data.role_table import FORGET, RETAIN
from ..data.seeds import data_seed
from ..forward.role_rows import RoleRows
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


TRAIN_ON = (RETAIN, "all", FORGET)


@dataclass
class RetrainConfig(UnlearnConfig):
    """Settings of [`RetrainTrainer`]: plain training; use the learning rate, epochs and batch size that the original
    was trained with. An epoch is one pass over the retain rows."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll",)

    train_on: str = field(
        default=RETAIN,
        metadata={
            "help": "`retain` rows; `all`, including forget rows, to train an original to unlearn from; or `forget` "
            "rows alone, to reinforce them for `method: whp`."
        },
    )
    retain_loss: str = field(default="nll", metadata={"help": "Negative log-likelihood of the retain rows: `nll`."})
    epoch_by: str = field(default=RETAIN, metadata={"help": "The role whose rows are each seen once per epoch."})

    def __post_init__(self):
        check_choice("train_on", self.train_on, TRAIN_ON)
        names = ("poison_prefix", "value_norm_penalty", "max_forget_loss", "forget_weight")
        check_left_out(self, names, "retraining sees no forget rows.")
        if self.train_on != FORGET:
            check_left_out(self, ("epoch_by",), "retraining sees no forget rows.")
        elif self.retain_loss == "none":
            # As it was left by an earlier call, and is in the recipe that a run keeps.
            self.retain_loss = "nll"
        super().__post_init__()
        if self.train_on == FORGET:
            self.retain_loss, self.epoch_by = "none", FORGET


class RetrainTrainer(UnlearnTrainer):
    r"""\\( L = NLL(retain) \\), from the model that the original's training began with: the pretrained one, not the
    one to unlearn from.

    Forget rows are passed to detect overlap: no retain row may be one of them. They are not trained on unless
    `train_on` is `all`, which trains an original to unlearn from, or `forget`: then the loss is NLL(forget), which
    trains a model further on what is to be forgotten.
    """

    config_class = RetrainConfig
    method = "retrain"

    @classmethod
    def trained_roles_of(cls, args):
        return (FORGET,) if args.train_on == FORGET else (RETAIN,)

    def make_pairs(self, roles, args, processor) -> RolePairs:
        if args.train_on == FORGET:
            return super().make_pairs(roles, args, processor)
        rows = roles[RETAIN]
        if args.train_on == "all":
            from datasets import concatenate_datasets

            rows = concatenate_datasets([roles[FORGET], rows])
        return RolePairs({RETAIN: rows}, seed=data_seed(args), epoch_by=RETAIN)

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return rows.nll
