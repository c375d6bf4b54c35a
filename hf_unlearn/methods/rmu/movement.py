# SPDX-License-Identifier: Apache-2.0
"""Whether RMU can move the activations: coefficients of one model do nothing to another."""

import logging
import math

from torch import Tensor


logger = logging.getLogger(__name__)

# Published with adaptive RMU (https://huggingface.co/papers/2408.06223): a control vector so many times as long as
# activations are.
ADAPTIVE = 5


def tell_lengths(states: Tensor, lengths: Tensor, layer: int, adaptive: bool) -> None:
    """Logs how long activations are beside what they are steered to, and warns where that is shorter.

    Args:
        states (`Tensor`): `[N, d]`, a layer's output at the forget tokens of a batch.
        lengths (`Tensor`): `[topics]`, the control vectors' lengths; NaN where a topic had no row yet.
        layer (`int`): whose output.
        adaptive (`bool`): whether lengths came from the activations.
    """
    norms = states.detach().float().norm(dim=-1)
    median, mean = norms.median().item(), norms.mean().item()
    known = [length for length in lengths.tolist() if not math.isnan(length)]
    logger.info(
        "Layer %d: activations of forget tokens have a median norm of %.4g (mean %.4g); they are steered to vectors "
        "of length %s.",
        layer,
        median,
        mean,
        ", ".join(f"{length:.4g}" for length in known),
    )
    if not adaptive and known and min(known) < median:
        logger.warning(
            "steering_coeffs: %.4g is less than the activations' norm at layer %d (median %.4g), so RMU mostly "
            "shrinks them and hardly turns them. Take steering_coeffs of about %.3g for this model, or "
            "adaptive_scale=%d.",
            min(known),
            layer,
            median,
            ADAPTIVE * median,
            ADAPTIVE,
        )
