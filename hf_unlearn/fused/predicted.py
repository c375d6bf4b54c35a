# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch are predicted."""

from dataclasses import dataclass

from torch import Tensor

from ..losses import IGNORE_INDEX


@dataclass
class Predicted:
    """The tokens that are predicted, `N` of them, in the order of their rows.

    Args:
        row, column (`Tensor`): `[N]`, which row and at which position the prediction is made.
        targets (`Tensor`): `[N]`, the predicted token ids.
        mask (`Tensor`): bool `[B, T-1]`.
    """

    row: Tensor
    column: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> "Predicted":
        """From `labels [B, T]`, -100 where nothing is trained on; shifted here."""
        targets = labels[:, 1:]
        mask = targets != IGNORE_INDEX
        row, column = mask.nonzero(as_tuple=True)
        return cls(row, column, targets[row, column], mask)

    @property
    def pools(self) -> Tensor:
        """`mask`, one line for all predictions of which the worst are sought together: those of a row."""
        return self.mask

    @property
    def row_weights(self) -> Tensor:
        """`[N]`, to sum with: a mean over each row's tokens, then over the rows of the batch."""
        tokens = self.mask.sum(1)
        return 1 / (tokens[self.row] * len(tokens)).float()

    def row_means(self, values: Tensor) -> Tensor:
        """`[N, ...]` to each row's mean over its tokens, `[B, ...]`; 0 for a row without any."""
        tokens = self.mask.sum(1).clamp(min=1).to(values.dtype)
        sums = values.new_zeros((len(tokens), *values.shape[1:])).index_add(0, self.row, values)
        return sums / tokens.view(-1, *(1,) * (values.dim() - 1))

    def pick(self, hidden: Tensor) -> Tensor:
        """`[B, T, d]` to `[N, d]`.

        Raises:
            `ValueError`: if there are other positions than labels.
        """
        rows, width = self.mask.shape
        if hidden.shape[:2] != (rows, width + 1):
            raise ValueError(
                f"Hidden states of {tuple(hidden.shape[:2])} positions and labels of {(rows, width + 1)}. Adapters "
                "that put virtual tokens before the text (prompt tuning) cannot be used."
            )
        return hidden[self.row, self.column]

    def spread(self, values: Tensor) -> Tensor:
        """`[N]` to `[B, T-1]`, 0 where nothing is predicted."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)
