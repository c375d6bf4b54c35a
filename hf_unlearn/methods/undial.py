# SPDX-License-Identifier: Apache-2.0
"""UNDIAL (https://huggingface.co/papers/2402.10052)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_number
from ..data.role_table import FORGET
from ..forward.needs import REFERENCE, Need
from ..fused import TileRows
from ..losses import undial_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer


@dataclass
class UNDIALConfig(UnlearnConfig):
    """Settings of [`UNDIALTrainer`]. The paper takes `beta` of 3, 10 or 30, LoRA of rank 8 and no retain term;
    OpenUnlearning 10, at a learning rate of 1e-4."""

    beta: float = field(
        default=10.0,
        metadata={"help": "What the label's logit is lowered by in the reference's prediction, 0 or more."},
    )

    def __post_init__(self):
        check_number("beta", self.beta, at_least=0)
        super().__post_init__()


@dataclass(frozen=True)
class Lowered:
    """Cross-entropy with the reference's prediction, the label's logit lowered.

    Args:
        beta (`float`): by so much.
    """

    beta: float

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        return undial_rows(logits, at.ref_logits, at.labels, self.beta), {"logps": -at.nll(logits.detach())}


class UNDIALTrainer(LabelRowsTrainer):
    """Distillation on forget rows from the reference with the labels' logits lowered: a fixed target,
    however long training lasts. See [`~hf_unlearn.losses.undial_rows`]."""

    config_class = UNDIALConfig
    method = "undial"
    paper = "2402.10052"

    @classmethod
    def needs_of(cls, args: UNDIALConfig):
        return {**super().needs_of(args), FORGET: Need(Lowered(args.beta), reference=(REFERENCE,))}
