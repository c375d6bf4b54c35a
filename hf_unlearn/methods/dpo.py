# SPDX-License-Identifier: Apache-2.0
"""Direct preference optimisation with the forget answer as the rejected one (https://huggingface.co/papers/2305.18290).

With refusals as the preferred answers it is IdkDPO, the DPO of https://huggingface.co/papers/2404.05868.
"""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice, check_number
from ..data.alternates import AlternateArguments
from ..data.role_table import ALTERNATE, FORGET
from ..families.base import CAUSAL_LM
from ..forward.needs import REFERENCE, Need
from ..forward.role_rows import RoleRows
from ..losses import dpo_unlearn_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


DPO_SCALES = ("2/beta", "1")


@dataclass
class DPOUnlearnConfig(AlternateArguments, UnlearnConfig):
    """Settings of [`DPOUnlearnTrainer`]. `alternate_source` `refusal` gives IdkDPO."""

    beta: float = field(default=0.1, metadata={"help": "Inverse temperature of the log-ratios, above 0."})
    dpo_scale: str = field(
        default="2/beta",
        metadata={
            "help": "Factor of the term: `2/beta`, as beside NPO (arXiv 2404.05868), or `1`, as in DPO's own paper "
            "and TRL."
        },
    )

    def __post_init__(self):
        check_choice("dpo_scale", self.dpo_scale, DPO_SCALES)
        check_number("beta", self.beta, above=0)
        super().__post_init__()


class DPOUnlearnTrainer(UnlearnTrainer):
    """Raises another answer's log-probability over the forget answer's, both against the reference's (see
    [`~hf_unlearn.losses.dpo_unlearn_loss`]). The alternates are those of
    [`~hf_unlearn.data.alternates.AlternateArguments`]."""

    config_class = DPOUnlearnConfig
    method = "dpo"
    paper = "2305.18290"
    families = (CAUSAL_LM,)

    @classmethod
    def needs_of(cls, args: DPOUnlearnConfig):
        return {**super().needs_of(args), **dict.fromkeys((FORGET, ALTERNATE), Need(reference=(REFERENCE,)))}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        preferred, beta = rows.tied[ALTERNATE], self.args.beta
        margin = (preferred.logps - preferred.ref_logps) - (rows.logps - rows.ref_logps)
        self.meters.add("forget/margin", margin.detach().mean())
        loss = dpo_unlearn_loss(preferred.logps, preferred.ref_logps, rows.logps, rows.ref_logps, beta)
        return loss if self.args.dpo_scale == "2/beta" else loss * beta / 2
