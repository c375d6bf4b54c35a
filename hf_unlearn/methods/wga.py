# SPDX-License-Identifier: Apache-2.0
"""Weighted gradient ascent (https://huggingface.co/papers/2502.19301)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_number
from ..forward.role_rows import RoleRows
from ..losses import wga_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class WGAConfig(UnlearnConfig):
    """Settings of [`WGATrainer`]. The default is that of the authors' code (G-effect); OpenUnlearning takes 1."""

    beta: float = field(
        default=5.0,
        metadata={"help": "Exponent of a token's probability in its weight, 0 or more; 0 is gradient ascent."},
    )

    def __post_init__(self):
        check_number("beta", self.beta, at_least=0)
        super().__post_init__()


class WGATrainer(UnlearnTrainer):
    """Gradient ascent in which each token's weight is its probability to the power of `beta`, mean over predicted
    tokens. See [`~hf_unlearn.losses.wga_loss`]."""

    config_class = WGAConfig
    method = "wga"
    paper = "2502.19301"

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return wga_loss(rows.token_logps, self.args.beta)
