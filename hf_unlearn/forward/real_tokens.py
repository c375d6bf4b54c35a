# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch are there."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fused.predicted import Predicted


@dataclass
class RealTokens:
    """The tokens of one role that are no padding, `N` of them, in the order of its rows.

    Args:
        row, column (`Tensor`): `[N]`, which row and position.
        scored (`Tensor`): bool `[N]`, where a label is predicted.
    """

    row: Tensor
    column: Tensor
    scored: Tensor

    @classmethod
    def of(cls, part: Mapping[str, Tensor]) -> "RealTokens":
        row, column = part["attention_mask"].nonzero(as_tuple=True)
        predicted = Predicted.of(part["labels"]).mask
        return cls(row, column, torch.nn.functional.pad(predicted, (0, 1))[row, column])
