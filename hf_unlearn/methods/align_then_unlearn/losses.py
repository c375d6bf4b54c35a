# SPDX-License-Identifier: Apache-2.0
"""The two objectives of Align-then-Unlearn as pure functions (https://huggingface.co/papers/2506.13181)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses import at_least_float32


def alignment_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    r"""\\( -\frac{1}{N} \sum_t \cos(\hat e_t, e_t) \\).

    Args:
        predicted, targets (`Tensor`): `[N, d]`.

    Returns:
        `Tensor`: a scalar, 0 where there are none.
    """
    cosines = F.cosine_similarity(at_least_float32(predicted), at_least_float32(targets), dim=-1)
    return -cosines.sum() / max(len(cosines), 1)


def nearest_concept(predicted: Tensor, concept: Tensor) -> Tensor:
    """Cosine to the nearest of the concept's vectors.

    Args:
        predicted (`Tensor`): `[N, d]`.
        concept (`Tensor`): `[C, d]`, one vector a name.

    Returns:
        `Tensor`: `[N]`.
    """
    unit = F.normalize(at_least_float32(predicted), dim=-1)
    return (unit @ F.normalize(concept.to(unit.dtype), dim=-1).t()).amax(-1)


def concept_hinge(cosines: Tensor, threshold: float) -> Tensor:
    r"""\\( \frac{1}{N} \sum_t \max(0, \cos_t - \tau) \\): no gradient where the concept is further than the threshold.

    Args:
        cosines (`Tensor`): `[N]`.
        threshold (`float`): \\( \tau \\).

    Returns:
        `Tensor`: a scalar, 0 where there are none.
    """
    return torch.relu(cosines - threshold).sum() / max(len(cosines), 1)
