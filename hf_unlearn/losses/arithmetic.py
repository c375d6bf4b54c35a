# SPDX-License-Identifier: Apache-2.0
"""What all losses count with: dtypes, and which positions count."""

import torch
from torch import Tensor


IGNORE_INDEX = -100


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()


def prediction_mask(labels: Tensor) -> Tensor:
    """Positions whose logits predict a label.

    Args:
        labels (`Tensor`): `[B, T]`.

    Returns:
        `Tensor`: bool `[B, T]`; the last position predicts nothing.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is set; 0, with a gradient of 0, where it is set nowhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)
