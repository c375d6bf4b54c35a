# SPDX-License-Identifier: Apache-2.0
"""Terms over activations inside the model, compared with those of the frozen original."""

import torch.nn.functional as F
from torch import Tensor

from .arithmetic import at_least_float32


# Above this cosine, 2.6 degrees from the reference, rerouting has next to no gradient, and `start` adds one of this
# share of the greatest.
STILL, START = 0.999, 0.01


def rerouting_loss(states: Tensor, ref_states: Tensor, start: Tensor | None = None) -> Tensor:
    r"""Representation rerouting (circuit breakers, https://huggingface.co/papers/2406.04313, algorithm 1).

    \\( E[\max(0, \cos(h, h_{ref}))] \\): activations turn until they are orthogonal to the reference's.

    At \\( h = h_{ref} \\), where training starts, the gradient is 0, for the cosine is greatest there: what there is
    is rounding, and an optimizer that divides by it goes wherever that points. `start` gives such tokens a direction;
    it adds to the gradient, not to the value, and to no token that has turned by more than 2.6 degrees.

    Args:
        states (`Tensor`): `[..., d]`, \\( h \\), of the tokens (and layers) that count.
        ref_states (`Tensor`): `[..., d]`; no gradient is taken.
        start (`Tensor`, *optional*): broadcasts to `[..., d]`; tokens that are where the reference's are turn away
            from it.

    Returns:
        `Tensor`: a scalar, mean over all but the last dimension; 0 where there are none.
    """
    states = at_least_float32(states)
    cosines = F.cosine_similarity(states, at_least_float32(ref_states.detach()), dim=-1)
    total = cosines.relu().sum()
    if start is not None:
        still = cosines.detach() > STILL
        away = START * (F.cosine_similarity(states, start.to(states), dim=-1) * still).sum()
        total = total + away - away.detach()
    return total / max(cosines.numel(), 1)


def distance_loss(states: Tensor, ref_states: Tensor) -> Tensor:
    r"""\\( E[\| h - h_{ref} \|_2] \\), not squared: representation rerouting's retain term.

    Its gradient has length 1 wherever the two differ, and is 0 where they do not.

    Args:
        states (`Tensor`): `[..., d]`.
        ref_states (`Tensor`): `[..., d]`; no gradient is taken.

    Returns:
        `Tensor`: a scalar, mean over all but the last dimension; 0 where there are none.
    """
    norms = (at_least_float32(states) - at_least_float32(ref_states.detach())).norm(dim=-1)
    return norms.sum() / max(norms.numel(), 1)
