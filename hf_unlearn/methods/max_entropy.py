# SPDX-License-Identifier: Apache-2.0
"""Maximum entropy of the predictions on forget rows (https://huggingface.co/papers/2408.00761, a baseline there)."""

from dataclasses import dataclass

from torch import Tensor

from ..data.role_table import FORGET
from ..forward.needs import Need
from ..losses import negative_entropy_rows
from ..training.config import UnlearnConfig
from .label_rows import OfLabels, PredictionRowsTrainer


@dataclass
class MaxEntropyConfig(UnlearnConfig):
    """Settings of [`MaxEntropyTrainer`]; the loss has none."""


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels do not count."""
    return negative_entropy_rows(logits)


class MaxEntropyTrainer(PredictionRowsTrainer):
    """Makes the predictions on forget rows as uncertain as they can be, among the tokenizer's tokens. See
    [`~hf_unlearn.losses.negative_entropy_rows`].

    The published code takes the mean over every position, of prompt and padding too; here it is over predicted tokens.
    """

    config_class = MaxEntropyConfig
    method = "max_entropy"
    paper = "2408.00761"

    @classmethod
    def needs_of(cls, args: MaxEntropyConfig):
        return {**super().needs_of(args), FORGET: Need(OfLabels(negative_entropy))}
