# SPDX-License-Identifier: Apache-2.0
"""Unlikelihood (https://huggingface.co/papers/1908.04319) of the forget rows' tokens."""

from dataclasses import dataclass

from ..data.role_table import FORGET
from ..forward.needs import Need
from ..losses import unlikelihood_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer, OfLabels


@dataclass
class UnlikelihoodConfig(UnlearnConfig):
    """Settings of [`UnlikelihoodTrainer`]; the loss has none."""


class UnlikelihoodTrainer(LabelRowsTrainer):
    """Lowers each label's probability with a gradient that is bounded, and fades as the label is forgotten. See
    [`~hf_unlearn.losses.unlikelihood_rows`]."""

    config_class = UnlikelihoodConfig
    method = "unlikelihood"
    paper = "1908.04319"

    @classmethod
    def needs_of(cls, args: UnlikelihoodConfig):
        return {**super().needs_of(args), FORGET: Need(OfLabels(unlikelihood_rows))}
