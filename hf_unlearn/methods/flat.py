# SPDX-License-Identifier: Apache-2.0
"""Loss adjustment with forget data alone (FLAT, https://huggingface.co/papers/2410.11143)."""

import logging
from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice
from ..data.alternates import AlternateArguments
from ..data.role_table import ALTERNATE
from ..families.base import CAUSAL_LM
from ..forward.needs import LOGPS
from ..forward.role_rows import RoleRows
from ..losses import FLAT_TERMS, flat_loss
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


logger = logging.getLogger(__name__)

# As published, these make the alternate less probable, and all but the last the forget answer more so.
REVERSED = ("reverse_kl", "squared_hellinger", "neyman")


@dataclass
class FLATConfig(AlternateArguments, UnlearnConfig):
    """Settings of [`FLATTrainer`]. The paper has no retain term: `retain_loss` is `none` by default."""

    retain_loss: str = field(default="none", metadata={"help": "Retain term: `none`, as published, `nll` or `kl`."})
    divergence: str = field(
        default="total_variation",
        metadata={"help": f"The f-divergence: {', '.join(f'`{name}`' for name in FLAT_TERMS)}."},
    )

    def __post_init__(self):
        check_choice("divergence", self.divergence, FLAT_TERMS)
        if self.divergence in REVERSED:
            logger.warning(
                "divergence=%r: as published, its loss falls as the alternate gets less probable. Take another to "
                "make it more so.",
                self.divergence,
            )
        super().__post_init__()


class FLATTrainer(UnlearnTrainer):
    """Maximises an f-divergence between another answer and the forget answer, from the mean probability of a token of
    each; see [`~hf_unlearn.losses.flat_loss`]. No reference, no retain rows.

    The mean is over a row's predicted tokens. The published code for TOFU divides by all positions, prompt and
    padding among them, and so weighs rows by their share of the batch's length.
    """

    config_class = FLATConfig
    method = "flat"
    paper = "2410.11143"
    families = (CAUSAL_LM,)

    @classmethod
    def needs_of(cls, args: FLATConfig):
        return {**super().needs_of(args), ALTERNATE: LOGPS}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        preferred, forgotten = (
            each.predicted.row_means(each.token_logps.exp()) for each in (rows.tied[ALTERNATE], rows)
        )
        self.meters.add("forget/p_token", forgotten.detach().mean())
        self.meters.add("alternate/p_token", preferred.detach().mean())
        return flat_loss(preferred, forgotten, self.args.divergence)
