# SPDX-License-Identifier: Apache-2.0
"""What MU-ALIGN's code does in training to the representations of forget rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses import at_least_float32


@dataclass(frozen=True)
class ForgetNoise:
    r"""\\( h \to h + s\,(\bar h_{retain} - h) \\), then \\( h \min(1, c / \|h\|) \\), then
    \\( h + \sigma n,\; n \sim N(0, I) \\), in this order.

    No gradient goes into the mean, which is over the retain rows of the micro-batch (of a language model over their
    answer tokens). The noise comes from torch's generator, whose state every checkpoint keeps.

    Args:
        clip (`float`, *optional*): \\( c \\), the largest norm.
        noise (`float`): \\( \sigma \\).
        shrink (`float`): \\( s \\), a share.
    """

    clip: float | None
    noise: float
    shrink: float

    def __call__(self, states: Mapping[str, Tensor]) -> Tensor:
        found = at_least_float32(states["forget"])
        if self.shrink and states["retain"].numel():
            kept = at_least_float32(states["retain"].detach())
            found = found + self.shrink * (kept.flatten(0, -2).mean(0) - found)
        if self.clip is not None:
            norm = torch.linalg.vector_norm(found, dim=-1, keepdim=True)
            found = found * (self.clip / norm.clamp(min=self.clip))
        return found + self.noise * torch.randn_like(found) if self.noise else found
