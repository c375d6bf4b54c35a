# SPDX-License-Identifier: Apache-2.0
"""What the head reads: looked at, or changed on the way to it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


# From the states of every role in a pass, `[n, d]` each, to what the head is to read of the role's own.
StatesFn = Callable[[Mapping[str, Tensor]], Tensor]


@contextmanager
def inputs_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """What `head` is called with while entered."""
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


@contextmanager
def changed_inputs(
    head: nn.Module, dims: int, picks: Mapping[str, Tensor], changes: Mapping[str, StatesFn]
) -> Iterator[None]:
    """While entered, `head` is called with changed states; what is entered later, or stands in for it, gets these.

    Args:
        head (`nn.Module`): from states to logits.
        dims (`int`): how many leading dimensions of its input count rows.
        picks (`Mapping[str, Tensor]`): role to its rows' indices, those dimensions flattened.
        changes (`Mapping[str, StatesFn]`): role to what is done.
    """

    def change(module, args):
        states, *others = args
        flat = states.flatten(0, dims - 1)
        own = {role: flat.index_select(0, rows) for role, rows in picks.items()}
        for role, function in changes.items():
            flat = flat.index_copy(0, picks[role], function(own).to(flat.dtype))
        return (flat.view_as(states), *others)

    hook = head.register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()
