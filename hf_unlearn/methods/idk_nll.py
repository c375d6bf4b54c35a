# SPDX-License-Identifier: Apache-2.0
"""Training on other answers in place of the forget answers (https://huggingface.co/papers/2401.06121, section 4.1).

With refusals it is IdkNLL, the preference optimisation of that paper, and the rejection tuning of
https://huggingface.co/papers/2406.10890.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..checks import check_left_out
from ..data.alternates import AlternateArguments
from ..data.pairing import RolePairs
from ..data.role_table import ALTERNATE, FORGET
from ..data.seeds import data_seed
from ..families.base import CAUSAL_LM
from ..forward.needs import LOGPS
from ..forward.role_rows import RoleRows
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class IdkNLLConfig(AlternateArguments, UnlearnConfig):
    """Settings of [`IdkNLLTrainer`]. `forget_weight` is the weight of the alternates' term."""

    def __post_init__(self):
        why = "the forget answers do not go through the model, and the log has no loss of theirs."
        check_left_out(self, ("max_forget_loss",), why)
        super().__post_init__()


class IdkNLLTrainer(UnlearnTrainer):
    r"""\\( L_{forget} = NLL(alternate) \\): fine-tuning on another answer to each forget prompt, mean over predicted
    tokens. The forget answers themselves are not read: a step costs what fine-tuning on the alternates does."""

    config_class = IdkNLLConfig
    method = "idk_nll"
    paper = "2401.06121"
    families = (CAUSAL_LM,)

    @classmethod
    def needs_of(cls, args: IdkNLLConfig):
        return {**super().needs_of(args), ALTERNATE: LOGPS}

    @classmethod
    def trained_roles_of(cls, args: IdkNLLConfig):
        return tuple(role for role in super().trained_roles_of(args) if role != FORGET)

    def make_pairs(self, roles, args: IdkNLLConfig, processor) -> RolePairs:
        trained = {role: rows for role, rows in roles.items() if role != FORGET}
        return RolePairs(trained, data_seed(args), ALTERNATE if args.epoch_by == FORGET else args.epoch_by)

    def terms(self, rows: Mapping[str, RoleRows]) -> dict[str, Tensor]:
        return {ALTERNATE: rows[ALTERNATE].nll, **super().terms(rows)}
