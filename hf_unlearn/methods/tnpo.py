# SPDX-License-Identifier: Apache-2.0
"""TNPO and WTNPO (https://huggingface.co/papers/2502.19301)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_number
from ..data.role_table import FORGET
from ..forward.needs import REFERENCE, Need
from ..forward.role_rows import RoleRows
from ..losses import tnpo_loss, wtnpo_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class TNPOConfig(UnlearnConfig):
    """Settings of [`TNPOTrainer`]. The defaults are those of the authors' code (G-effect), which has `alpha=1.5` in
    WTNPO."""

    beta: float = field(
        default=4.0,
        metadata={"help": "Inverse temperature of a token's log-ratio, above 0; the limit at 0 is gradient ascent."},
    )
    alpha: float = field(
        default=0.0,
        metadata={"help": "Further exponent of a token's probability in its weight: 0 is TNPO, above 0 WTNPO."},
    )

    def __post_init__(self):
        check_number("beta", self.beta, above=0)
        check_number("alpha", self.alpha, at_least=0)
        super().__post_init__()


class TNPOTrainer(UnlearnTrainer):
    """NPO of each token by itself, mean over predicted tokens ([`~hf_unlearn.losses.tnpo_loss`]); with `alpha`, tokens
    that are improbable by themselves fade too ([`~hf_unlearn.losses.wtnpo_loss`])."""

    config_class = TNPOConfig
    method = "tnpo"
    paper = "2502.19301"

    @classmethod
    def needs_of(cls, args: TNPOConfig):
        return {**super().needs_of(args), FORGET: Need(reference=(REFERENCE,))}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        logps, ref_logps, args = rows.token_logps, rows.ref_token_logps, self.args
        self.meters.add("forget/ref_logps", rows.ref_logps.mean())
        if args.alpha:
            return wtnpo_loss(logps, ref_logps, args.beta, args.alpha)
        return tnpo_loss(logps, ref_logps, args.beta)
