# SPDX-License-Identifier: Apache-2.0
"""The logit lens with gradients: what every decoder layer puts out, read with the final norm and the head."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..fused.head import unwrapped
from ..modeling import evaluating
from ..models.activations import captured, layers_of
from .head_input import inputs_of


@contextmanager
def every_layer(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """While entered, the latest output of each decoder layer, by its number."""
    with captured(dict(enumerate(layers_of(model)))) as taken:
        yield taken


def final_norm(model: nn.Module, reader: nn.Module) -> nn.Module:
    """What stands between the last decoder layer and the head, found by what it takes and puts out.

    Args:
        model (`nn.Module`): as the trainer calls it.
        reader (`nn.Module`): its head.

    Raises:
        `ValueError`: if more than one module does, as where states are projected to another width.
    """
    layers = layers_of(model)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def see(module, args, output):
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.append((module, args[0], output))

    inside = {id(module) for layer in layers for module in layer.modules()}
    modules = [module for module in unwrapped(model).modules() if id(module) not in inside and module is not reader]
    device = next(model.parameters()).device
    ids = torch.arange(2, device=device)[None]
    with evaluating(model), torch.no_grad(), every_layer(model) as taken, inputs_of(reader) as read:
        hooks = [module.register_forward_hook(see) for module in modules]
        try:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    last, head_input = taken[len(layers) - 1], read[-1]
    # What wraps a norm takes and gives the same, and is called after what is inside.
    for module, given, output in reversed(seen):
        if _same(given, last) and _same(output, head_input):
            return module
    if _same(last, head_input):
        return nn.Identity()
    raise ValueError(
        f"{type(unwrapped(model)).__name__} does more than one norm between its last decoder layer and its head, so "
        "its layers cannot be read with them. Take a method that reads log-probabilities or one layer alone."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@contextmanager
def layers_to_head(reader: nn.Module, norm: nn.Module, taken: Mapping[int, Tensor]) -> Iterator[None]:
    """While entered, the head reads after its own input the states of every layer but the last, `[layers * B, T, d]`
    together, so that whatever the model does to its logits is done to theirs."""

    def stack(module, args):
        own, *others = args
        return (torch.cat([own, *(norm(taken[layer]).to(own.dtype) for layer in range(len(taken) - 1))]), *others)

    hook = reader.register_forward_pre_hook(stack)
    try:
        yield
    finally:
        hook.remove()


def lens_logps(
    states: Tensor, hidden: Tensor, norm: nn.Module, labels: Tensor, logps: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Log-probabilities of the labels after every layer, `[N, layers]`.

    Args:
        states (`Tensor`): `[N, layers, d]`.
        hidden (`Tensor`): `[N, d]`, what the head reads.
        norm (`nn.Module`): see [`final_norm`].
        labels (`Tensor`): `[N]`.
        logps (`Callable`): from `[n, d]` and `[n]` labels to `[n]`; called once, for all layers.
    """
    count = states.shape[1]
    read = [norm(states[:, layer]).to(hidden.dtype) for layer in range(count - 1)]
    return logps(torch.cat([*read, hidden]), labels.repeat(count)).view(count, -1).T


def layers_at(taken: Mapping[int, Tensor], picks: Tensor) -> Tensor:
    """The layers' states at some positions, `[N, layers, d]`.

    Args:
        picks (`Tensor`): `[N]`, their indices in `[B * T]`.
    """
    return torch.stack([taken[layer].flatten(0, 1).index_select(0, picks) for layer in range(len(taken))], dim=1)
