# SPDX-License-Identifier: Apache-2.0
"""SimNPO (https://huggingface.co/papers/2410.07163)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_number
from ..forward.role_rows import RoleRows
from ..losses import simnpo_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class SimNPOConfig(UnlearnConfig):
    """Settings of [`SimNPOTrainer`]. The defaults are the authors' for TOFU (their repository Unlearn-Simple; a retain
    term of weight 1); OpenUnlearning takes `beta=4.5` and `forget_weight=0.125`."""

    beta: float = field(
        default=2.5,
        metadata={"help": "Inverse temperature of a row's mean log-probability, above 0."},
    )
    delta: float = field(
        default=0.0,
        metadata={"help": "Margin of a token's negative log-likelihood (nats), 0 or more; gamma / beta in the paper."},
    )
    forget_weight: float = field(default=0.1375, metadata={"help": "Weight of the forget term."})

    def __post_init__(self):
        check_number("beta", self.beta, above=0)
        check_number("delta", self.delta, at_least=0)
        super().__post_init__()


class SimNPOTrainer(UnlearnTrainer):
    """NPO without a reference: lowers the forget rows' mean log-probability a token, with a gradient that fades once
    it is low. See [`~hf_unlearn.losses.simnpo_loss`]."""

    config_class = SimNPOConfig
    method = "simnpo"
    paper = "2410.07163"

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return simnpo_loss(rows.logps, rows.predicted.mask.sum(1), self.args.beta, self.args.delta)
