# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a model with other weights for a while."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...models.wrappers import ATTRIBUTE


def linear_layers(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Linear layers by name (GPT-2's `Conv1D` is one), each weight once: without the head, whatever shares its weight,
    and what a wrapper brings beside the model.

    Args:
        model (`nn.Module`): the model.
        skip (`Sequence[str]`): names, or parts between dots, of modules that are left as they are.

    Raises:
        `ValueError`: for a name in `skip` that no module has.
    """
    head = model.get_output_embeddings()
    taken = set() if head is None else {id(parameter) for parameter in head.parameters()}
    found, unknown = {}, set(skip)
    for name, module in model.named_modules():
        left = [part for part in (*skip, ATTRIBUTE) if f".{part}." in f".{name}."]
        unknown -= {*left}
        if isinstance(module, (nn.Linear, Conv1D)) and not left and id(module.weight) not in taken:
            taken.add(id(module.weight))
            found[name] = module
    if unknown:
        raise ValueError(
            f"skip: no module of the model is called {min(unknown)!r}. The head is left as it is anyway; others "
            f"are called like {', '.join([*found][:3])}."
        )
    return found


def weight_of(layer: nn.Module) -> torch.Tensor:
    """A layer's weight `[out, in]`, a view of it where the layer holds it the other way round."""
    return layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()


@contextmanager
def changed_weights(
    layers: Mapping[str, nn.Module], change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[float]:
    """Layers with `change` of their weights; gives the share of these that are other values now. They come back bit
    for bit, also after an exception."""
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        moved = total = 0
        for name, layer in layers.items():
            weight_of(layer).copy_(change(weight_of(layer)))
            moved += int((layer.weight.detach() != kept[name]).sum())
            total += kept[name].numel()
        yield moved / total if total else 0.0
    finally:
        for name, layer in layers.items():
            layer.weight.detach().copy_(kept[name])


@contextmanager
def bitsandbytes_layers(model: nn.Module, layers: Mapping[str, nn.Module], name: str) -> Iterator[float]:
    """The model with layers of bitsandbytes in the place of `layers`, which compute as a served model does; gives 1,
    or 0 where there is none to replace."""
    import bitsandbytes as bnb

    for path, layer in layers.items():
        weight, bias = weight_of(layer).contiguous(), layer.bias
        size = {"input_features": weight.shape[1], "output_features": weight.shape[0], "bias": bias is not None}
        # Bits of activations' outliers are as transformers' `BitsAndBytesConfig` has them.
        if name == "int8":
            new = bnb.nn.Linear8bitLt(**size, has_fp16_weights=False, threshold=6.0)
            new.weight = bnb.nn.Int8Params(weight.cpu().clone(), requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(**size, compute_dtype=weight.dtype, quant_type=name)
            new.weight = bnb.nn.Params4bit(weight.cpu().clone(), requires_grad=False, quant_type=name)
        if bias is not None:
            new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        model.set_submodule(path, new.to(weight.device))
    try:
        yield float(bool(layers))
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer)
