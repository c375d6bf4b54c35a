# SPDX-License-Identifier: Apache-2.0
"""Maximum entropy of the predictions on forget rows (https://huggingface.co/papers/2408.00761, a baseline there)."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..data.role_table import FORGET
from ..forward.needs import Need
from ..losses import negative_entropy_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer, OfLabels


@dataclass
class MaxEntropyConfig(UnlearnConfig):
    """Settings of [`MaxEntropyTrainer`]; the loss has none."""


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels do not count."""
    return negative_entropy_rows(logits)


class MaxEntropyTrainer(LabelRowsTrainer):
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

    def setup(self, entry) -> None:
        self._tokens = self.family.predictions(entry.model, entry.tokenizer)

    def build_forward(self, model, args, needs, shape):
        # What only pads the head has nothing to be uncertain about.
        needs = {**needs, FORGET: replace(needs[FORGET], columns=self._tokens)}
        return super().build_forward(model, args, needs, shape)
