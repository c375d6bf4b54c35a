# SPDX-License-Identifier: Apache-2.0
"""Gradient ascent, GradDiff and GA+KL.

`retain_loss` `none` is gradient ascent (https://huggingface.co/papers/2210.01504), `nll` is GradDiff
(https://huggingface.co/papers/2203.12817), `kl` keeps the reference's predictions on the retain rows
(https://huggingface.co/papers/2401.06121, section 4.1).
"""

from dataclasses import dataclass

from torch import Tensor

from ..forward.role_rows import RoleRows
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class GAConfig(UnlearnConfig):
    """Settings of [`GATrainer`]. The ascent is unbounded: keep it short, or set `max_forget_loss`."""


class GATrainer(UnlearnTrainer):
    r"""\\( L_{forget} = -NLL(forget) \\): gradient ascent on the forget rows, mean over their predicted tokens."""

    config_class = GAConfig
    method = "ga"
    paper = "2210.01504"

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return -rows.nll
