# SPDX-License-Identifier: Apache-2.0
"""What an add-on takes beside its method, for `hf-unlearn plan`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What memory of add-ons follows from.

    Args:
        trained (`int`): weights that train.
        weight, gradient (`int`): bytes of one of them, and of its gradient.
        others (`bool`): whether the loss has terms beside those that forget.
        accumulation (`int`): micro-batches a step.
        below (`int`): weights that an adapter is on.
    """

    trained: int
    weight: int
    gradient: int
    others: bool
    accumulation: int
    below: int


@dataclass(frozen=True)
class Cost:
    """What an add-on takes. Bytes, of one process.

    Args:
        held (`float`): in every moment of a step.
        repeated (`float`): while a step's rows go through the model again.
        backward (`float`): when the backward pass ends.
        start (`float`): once, before there are optimizer states.
        passes (`int`): forward and backward passes of a step's rows, beside the step's own.
        inner_steps (`int`): forwards of the forget rows, and backward passes to states, for each of these passes.
        inner_layers (`tuple[int, ...]`): the layers whose outputs these passes go back to.
    """

    held: float = 0.0
    repeated: float = 0.0
    backward: float = 0.0
    start: float = 0.0
    passes: int = 0
    inner_steps: int = 0
    inner_layers: tuple[int, ...] = ()
