# SPDX-License-Identifier: Apache-2.0
"""A classifier's rows, one prediction each, and how their soft labels are read."""

import torch
from torch import Tensor

from ... import losses
from ...fused import TileRows
from ...fused.predicted import Predicted


class RowPredictions(Predicted):
    """As many predictions as rows: `targets [B, K]`, `mask [B, 1]`."""

    @classmethod
    def of(cls, labels: Tensor) -> "RowPredictions":
        """From soft `labels [B, K]`."""
        row = torch.arange(len(labels), device=labels.device)
        return cls(row, torch.zeros_like(row), labels, torch.ones_like(row, dtype=torch.bool)[:, None])

    @property
    def pools(self) -> Tensor:
        """The worst are sought among all rows of a batch."""
        return self.mask.t()


class SoftmaxRows(TileRows):
    """Labels `[n, K]` are shares of one class among all; see [`~hf_unlearn.losses.soft_nll_rows`]."""

    def nll(self, logits: Tensor, smoothing: float = 0.0, tokens: int | None = None) -> Tensor:
        return losses.soft_nll_rows(logits, self.labels, smoothing)


class BernoulliRows(TileRows):
    """Labels `[n, K]` are a probability for each class; see [`~hf_unlearn.losses.bernoulli_nll_rows`]."""

    def nll(self, logits: Tensor, smoothing: float = 0.0, tokens: int | None = None) -> Tensor:
        return losses.bernoulli_nll_rows(logits, self.labels, smoothing)

    def distillation(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        return losses.bernoulli_distillation_rows(logits, self.ref_logits, temperature)


ROWS = {"softmax": SoftmaxRows, "bernoulli": BernoulliRows}
