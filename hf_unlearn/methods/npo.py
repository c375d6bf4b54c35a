# SPDX-License-Identifier: Apache-2.0
"""Negative preference optimisation (https://huggingface.co/papers/2404.05868)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice, check_number
from ..data.role_table import FORGET
from ..forward.needs import REFERENCE, Need
from ..forward.role_rows import RoleRows
from ..losses import npo_loss, npo_token_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


NPO_VARIANTS = ("sequence", "token")


@dataclass
class NPOConfig(UnlearnConfig):
    """Settings of [`NPOTrainer`]. `retain_loss` `nll` gives NPO-GDR, `kl` NPO-KLR."""

    beta: float = field(
        default=0.1,
        metadata={"help": "Inverse temperature of the log-ratio, above 0; the limit at 0 is gradient ascent."},
    )
    npo_variant: str = field(
        default="sequence",
        metadata={
            "help": "Unit of the log-ratio: a row (`sequence`, the paper's equation) or each token (`token`, as arXiv "
            "2510.17021 on WMDP)."
        },
    )

    def __post_init__(self):
        check_choice("npo_variant", self.npo_variant, NPO_VARIANTS)
        check_number("beta", self.beta, above=0)
        super().__post_init__()


class NPOTrainer(UnlearnTrainer):
    """Lowers the forget rows' log-probability below the reference's, with a gradient that fades once it is lower.
    Log-ratios are sums over a row's tokens (see [`~hf_unlearn.losses.npo_loss`]), or those of single tokens
    ([`~hf_unlearn.losses.npo_token_loss`])."""

    config_class = NPOConfig
    method = "npo"
    paper = "2404.05868"

    @classmethod
    def needs_of(cls, args: NPOConfig):
        return {**super().needs_of(args), FORGET: Need(reference=(REFERENCE,))}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        self.meters.add("forget/ref_logps", rows.ref_logps.mean())
        if self.args.npo_variant == "token":
            return npo_token_loss(rows.token_logps, rows.ref_token_logps, self.args.beta)
        return npo_loss(rows.logps, rows.ref_logps, self.args.beta)
