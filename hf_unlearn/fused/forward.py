# SPDX-License-Identifier: Apache-2.0
"""A function in place of the LM head's product, inside the model's own forward.

DDP, ZeRO and FSDP gather weights and reduce gradients in hooks around the forward of the whole model and of each of
its modules. So the objective is computed inside the call of the head module, inside the call of the model: for the
hooks nothing has changed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .head import Head, head_at, head_leaves, unwrapped


def head_forward(
    model: nn.Module, inputs: Mapping[str, Any], compute: Callable[[Tensor, Head], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Calls `model(**inputs)` with `compute(hidden, head)` in place of its LM head.

    Args:
        model (`nn.Module`):
            The model as the trainer calls it: plain, DDP, DeepSpeed engine, FSDP2, PEFT. It is left as it was.
        inputs (`Mapping[str, Any]`):
            The model's keyword arguments, without `labels`.
        compute (`Callable[[Tensor, Head], Mapping[str, Tensor]]`):
            Takes the last hidden states `[B, T, d]` and the head with its whole weights; returns named tensors of any
            shape. Detach what is for logging only. Returning `{"hidden": hidden}` does no head work at all.

    Returns:
        `dict[str, Tensor]`: what `compute` returned, for `backward` to start from.

    Raises:
        `ValueError`: if the head cannot be replaced, see [`head_of`].
    """
    core = unwrapped(model)
    with _HeadSwap(core, compute) as swap:
        outputs = model(**inputs)
    if swap.results is None:
        raise ValueError(f"{type(core).__name__} did not call its output embeddings in its forward.")
    if not outputs.logits.requires_grad:
        return swap.results
    return {name: _Join.apply(x, outputs.logits) if x.requires_grad else x for name, x in swap.results.items()}


def check_head(model: nn.Module, input_ids: Tensor | None = None) -> Tensor:
    """Compares the logits of [`Head`] with the model's own on a few tokens: two short forwards, no gradient.

    Worth it once before training: configs do not tell all that a model does to its logits. Under DDP, ZeRO-3 and FSDP2
    every rank has to call it.

    Args:
        model (`nn.Module`): the model as the trainer calls it.
        input_ids (`Tensor`, *optional*): `[B, T]`; the first few ids of the vocabulary if left out.

    Returns:
        `Tensor`: the last hidden states `[B, T, d]` of these ids, of the width and dtype that all will have.

    Raises:
        `ValueError`: with the largest difference, if the two are not the same.
    """
    core = unwrapped(model)
    if input_ids is None:
        count = min(8, core.config.get_text_config().vocab_size)
        input_ids = torch.arange(count, device=head_leaves(core)[0].weight.device)[None]
    autocast = []

    def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
        # Autocast is on inside the wrapped forward only.
        autocast.append(torch.is_autocast_enabled(hidden.device.type))
        return {"hidden": hidden, "logits": head.logits(hidden)}

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = head_forward(model, {"input_ids": input_ids}, compute)
            theirs = model(input_ids=input_ids).logits
    finally:
        model.train(training)
    ours, error = found["logits"], float("inf")
    if ours.shape == theirs.shape:
        # A model that has diverged is not for this check to find.
        known = ~(ours.isnan() & theirs.isnan())
        error = 0.0
        if known.any():
            error = ((ours - theirs)[known].abs().max() / theirs[known].abs().max().clamp(min=1e-6)).item()
    # Under autocast the products are rounded to 8 bits, whatever the type of the weights says.
    narrow = any(autocast) or theirs.dtype not in (torch.float32, torch.float64)
    limit = 0.05 if narrow else 1e-4
    if not error <= limit:
        raise ValueError(
            f"The logits of {type(core).__name__} cannot be computed from its hidden states and its head: the "
            f"relative difference is {error:.2g}, above {limit:g}. Use the losses over logits for this model."
        )
    return found["hidden"]


class _HeadSwap:
    """While entered, the head of `core` runs `compute`; the model's output is a carrier, not logits."""

    def __init__(self, core: nn.Module, compute):
        self.core, self.compute = core, compute
        self.leaves = head_leaves(core)
        self.results: dict[str, Tensor] | None = None

    def __enter__(self):
        for leaf in self.leaves:
            leaf.forward = partial(self._forward, leaf)
        # Registered last, so called last: it sees the outputs with what ZeRO and FSDP hung on them.
        self.hooks = [leaf.register_forward_hook(self._take_and_carry) for leaf in self.leaves]
        return self

    def __exit__(self, *exception):
        for hook in self.hooks:
            hook.remove()
        for leaf in self.leaves:
            del leaf.forward

    def _forward(self, leaf: nn.Linear, hidden: Tensor) -> tuple[Tensor, ...]:
        self.results = dict(self.compute(hidden, head_at(self.core, leaf)))
        self.hooked = [name for name, x in self.results.items() if x.requires_grad]
        # A tuple, for ZeRO and FSDP search a module's output for tensors to hang their hooks on.
        return tuple(self.results[name] for name in self.hooked)

    def _take_and_carry(self, module, args, outputs: tuple[Tensor, ...]) -> Tensor:
        self.results.update(zip(self.hooked, outputs, strict=True))
        (hidden,) = args
        return _Carry.apply(hidden.detach(), *outputs)


class _Carry(torch.autograd.Function):
    """Zeros in place of logits, `[..., 1]`, that depend on `values`.

    Whatever the model does to its logits does nothing to the values; and the whole graph can be reached from the
    model's output, where DDP searches it.
    """

    @staticmethod
    def forward(ctx, hidden, *values):
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    @staticmethod
    def backward(ctx, grad):
        return (None,) * len(ctx.needs_input_grad)


class _Join(torch.autograd.Function):
    """`value`, made to depend on `carried` with a gradient of 0, so that hooks on the model's output run first."""

    @staticmethod
    def forward(ctx, value, carried):
        ctx.carried = {"size": carried.shape, "dtype": carried.dtype, "device": carried.device}
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.zeros(**ctx.carried)
