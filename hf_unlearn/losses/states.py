# SPDX-License-Identifier: Apache-2.0
"""Terms over activations inside the model, compared with those of the frozen original."""

import torch
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


def noise_loss(states: Tensor, noise: Tensor, kernels: int = 5) -> Tensor:
    r"""Squared maximum mean discrepancy of states and noise, the term of RepNoise
    (https://huggingface.co/papers/2405.14577).

    \\( E[k(h, h')] + E[k(z, z')] - 2 E[k(h, z)] \\), all pairs with themselves included, of a sum of Gaussian kernels
    \\( k(a, b) = \sum_i \exp(-\|a - b\|^2 / (2^i s)) \\), \\( i \\) around 0, \\( s \\) the mean squared distance of
    two different samples of either kind, which no gradient is taken of. 0 where the two are the same samples.

    Args:
        states (`Tensor`): `[N, d]`, \\( h \\).
        noise (`Tensor`): `[M, d]`, \\( z \\); no gradient is taken.
        kernels (`int`): how many, of twice the width each; an odd number has \\( i = 0 \\) in its middle.

    Returns:
        `Tensor`: a scalar between 0 and `2 * kernels`; 0 where there are no samples.
    """
    count, others = len(states), len(noise)
    if not count or not others:
        return states.sum() * 0.0
    every = torch.cat([at_least_float32(states), at_least_float32(noise.detach()).to(at_least_float32(states))])
    # By products, so that no `[N, M, d]` is kept; rounding may leave less than 0.
    products = every @ every.T
    norms = products.diagonal()
    distances = (norms[:, None] + norms[None] - 2 * products).clamp(min=0)
    total = len(every)
    width = (distances.detach().sum() / (total * (total - 1))).clamp(min=torch.finfo(distances.dtype).tiny)
    # Signs and shares of the four blocks of pairs.
    signs = torch.cat([distances.new_full((count,), 1 / count), distances.new_full((others,), -1 / others)])
    shifts = [number - kernels // 2 for number in range(kernels)]
    return sum(signs @ torch.exp(-distances / (width * 2.0**shift)) @ signs for shift in shifts)


def layer_ascent_loss(layer_logps: Tensor, row_weights: Tensor) -> Tensor:
    r"""\\( -\log(1 + E[-\log p_l(y)]) \\), the other term of RepNoise: cross-entropy of the labels that is raised, as
    every layer predicts them, with a gradient that fades as it grows.

    Args:
        layer_logps (`Tensor`): `[N, layers]`, \\( \log p_l(y) \\).
        row_weights (`Tensor`): `[N]`, shares of the tokens, which add to 1.

    Returns:
        `Tensor`: a scalar, at most 0; 0 where there are no tokens.
    """
    nll = -(at_least_float32(layer_logps).mean(-1) * row_weights).sum()
    return -nll.log1p()
