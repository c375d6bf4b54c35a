# SPDX-License-Identifier: Apache-2.0
"""Negative preference optimisation (https://huggingface.co/papers/2404.05868)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..config import UnlearnConfig, check_number
from ..forward import RoleRows
from ..losses import npo_loss
from ..trainer import UnlearnTrainer


@dataclass
class NPOConfig(UnlearnConfig):
    """Settings of [`NPOTrainer`]. `retain_loss` `nll` gives NPO-GDR, `kl` NPO-KLR."""

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature of the log-ratio, above 0; towards 0 it is ascent."}
    )

    def __post_init__(self):
        check_number("beta", self.beta, above=0)
        super().__post_init__()


class NPOTrainer(UnlearnTrainer):
    """Pushes the forget rows below the reference, with a gradient that fades once they are; log-ratios are sums over a
    row's tokens (see [`~hf_unlearn.losses.npo_loss`])."""

    config_class = NPOConfig
    method = "npo"
    paper = "2404.05868"

    @classmethod
    def reference_roles_of(cls, args: NPOConfig) -> set[str]:
        return super().reference_roles_of(args) | {"forget"}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        loss = npo_loss(rows.logps, rows.ref_logps, self.args.beta)
        self.meters.add("forget/ref_logps", rows.ref_logps.mean())
        return loss
