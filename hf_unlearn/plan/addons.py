# SPDX-License-Identifier: Apache-2.0
"""What a workload's add-ons take, as each says of itself (see [`~hf_unlearn.addons.cost.Cost`])."""

from dataclasses import replace

from ..addons.cost import Cost, Sizes
from ..data.role_table import FORGET
from ..forward.needs import LOGPS
from .activations import activation_bytes, gradient_size, layer_bytes, weight_size
from .heads import head_bytes
from .workload import Workload


# A perturbation, its gradient and AdamW's two moments, in float32.
PERTURBATION = 4 * 4
# Parts of a pass's arithmetic: forward, back to states, and back to weights where all train.
FORWARD, TO_STATES, TO_WEIGHTS = 2, 2, 2


def costs_of(work: Workload) -> list[Cost]:
    """The costs of the add-ons, in their order."""
    shape = work.shape
    sizes = Sizes(shape.trainable, weight_size(work), gradient_size(work), work.others, work.accumulation, shape.below)
    return [addon.cost(sizes) for addon in work.addons]


def total(work: Workload, name: str) -> float:
    """The sum of one field of the costs."""
    return sum(getattr(cost, name) for cost in costs_of(work))


def inner_bytes(work: Workload) -> dict[str, float]:
    """What inner steps take: the graph of the forget rows alone, from their answers to the lowest layer that is
    perturbed, and the perturbations. At most: weights get no gradient there."""
    layers = [layer for cost in costs_of(work) for layer in cost.inner_layers]
    if not layers:
        return {}
    whole = work.whole or work.shape
    above = max(whole.layers - 1 - min(layers), 0)
    inner = replace(
        work, needs={FORGET: LOGPS}, shape=replace(whole, trained_layers=above, trainable=0, head_trains=False)
    )
    return {
        "activations": activation_bytes(inner) + (layer_bytes(inner) if inner.checkpointing else 0.0),
        "logits and head": head_bytes(inner),
        "perturbations": PERTURBATION * len(layers) * inner.tokens * whole.hidden,
    }


def step_times(work: Workload) -> float:
    """A step's arithmetic over what it is without add-ons, about; rows of all roles count as equally long."""
    shape, whole = work.shape, work.whole or work.shape
    own = (FORWARD + TO_STATES + TO_WEIGHTS * shape.trainable / shape.parameters) * shape.layers
    inner = total(work, "inner_steps") * (FORWARD + TO_STATES) * whole.layers
    forget = work.rows * work.row_length / work.tokens
    return (1 + total(work, "passes")) * (1 + forget * inner / own)
