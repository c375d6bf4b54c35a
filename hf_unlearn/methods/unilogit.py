# SPDX-License-Identifier: Apache-2.0
"""Unilogit (https://huggingface.co/papers/2505.06027)."""

from dataclasses import dataclass

from ..data.role_table import FORGET
from ..forward.needs import Need
from ..losses import unilogit_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer, OfLabels


@dataclass
class UnilogitConfig(UnlearnConfig):
    """Settings of [`UnilogitTrainer`]; the loss has none."""


class UnilogitTrainer(LabelRowsTrainer):
    """Self-distillation on forget rows from the model's own prediction in which the label has the probability 1 / V.
    See [`~hf_unlearn.losses.unilogit_rows`]."""

    config_class = UnilogitConfig
    method = "unilogit"
    paper = "2505.06027"

    @classmethod
    def needs_of(cls, args: UnilogitConfig):
        return {**super().needs_of(args), FORGET: Need(OfLabels(unilogit_rows))}
