# SPDX-License-Identifier: Apache-2.0
"""SatImp (https://huggingface.co/papers/2505.11953)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_number
from ..forward.role_rows import RoleRows
from ..losses import satimp_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class SatImpConfig(UnlearnConfig):
    """Settings of [`SatImpTrainer`]. The weights are those of the method's README in OpenUnlearning; the YAML beside
    it has them the other way round (`forget_weight=0.1`, `retain_weight=1`)."""

    beta1: float = field(
        default=5.0,
        metadata={"help": "Exponent of a token's probability p in its weight (saturation), 0 or more."},
    )
    beta2: float = field(default=1.0, metadata={"help": "Exponent of 1 - p in its weight (importance), 0 or more."})
    retain_weight: float = field(default=0.1, metadata={"help": "Weight of the retain term."})

    def __post_init__(self):
        check_number("beta1", self.beta1, at_least=0)
        check_number("beta2", self.beta2, at_least=0)
        super().__post_init__()


class SatImpTrainer(UnlearnTrainer):
    """Gradient ascent in which each token has a weight of its own, low where it is forgotten and where it is certain;
    mean over predicted tokens. See [`~hf_unlearn.losses.satimp_loss`]."""

    config_class = SatImpConfig
    method = "satimp"
    paper = "2505.11953"

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return satimp_loss(rows.token_logps, self.args.beta1, self.args.beta2)
