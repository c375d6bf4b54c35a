# SPDX-License-Identifier: Apache-2.0
"""What modules inside a model put out, taken while the model runs; and running only as much of it as is read.

Hooks store a module's output and compute nothing: under activation checkpointing a computation in a hook would be
recorded in one of the two forwards only.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from ..fused.head import unwrapped


Key = TypeVar("Key")


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The list of a model's decoder layers, through wrappers; `None` where it is not one list."""
    core = unwrapped(model)
    # Not every config can say it: that of a model with an encoder raises.
    count = _layer_count(core.config.get_text_config())
    lists = [module for module in core.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return lists[0] if len(lists) == 1 else None


def _layer_count(config) -> int | None:
    try:
        return config.num_hidden_layers
    except (AttributeError, NotImplementedError):
        return None


def layers_of(model: nn.Module) -> nn.ModuleList:
    """As [`decoder_layers`].

    Raises:
        `ValueError`: where they are not found.
    """
    layers = decoder_layers(model)
    if layers is None:
        raise ValueError(
            f"The decoder layers of {type(unwrapped(model)).__name__} are not one list of modules, so no layer of it "
            "can be read. Give a decoder-only model of transformers."
        )
    return layers


def check_layer(name: str, layer: int, count: int) -> None:
    """Raises `ValueError` unless a model of `count` layers has the layer."""
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < count:
        raise ValueError(f"{name}={layer!r}; the model has {count} layers: give 0 to {count - 1}.")


@contextmanager
def captured(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """While entered, the latest output of each module, under its key, with its graph."""
    taken: dict[Key, Tensor] = {}

    def take(key: Key):
        def hook(module, args, output):
            taken[key] = output[0] if isinstance(output, (tuple, list)) else output

        return hook

    hooks = [module.register_forward_hook(take(key)) for key, module in modules.items()]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def stopped_after(model: nn.Module, layer: int) -> Iterator[None]:
    """While entered, the model goes from `layer` straight to its final norm: the layers above do not run, and what
    shards weights does not gather theirs."""
    with other_layers(model, list(layers_of(model))[: layer + 1]):
        yield


@contextmanager
def other_layers(model: nn.Module, others: Iterable[nn.Module]) -> Iterator[None]:
    """While entered, `others` are the model's decoder layers."""
    layers = layers_of(model)
    parent, name = next(
        (module, name)
        for module in unwrapped(model).modules()
        for name, child in module._modules.items()
        if child is layers
    )
    parent._modules[name] = nn.ModuleList(others)
    try:
        yield
    finally:
        parent._modules[name] = layers


# Projections that put out queries, keys and values side by side; their last part is the values.
FUSED_PROJECTIONS = ("qkv_proj", "c_attn", "Wqkv")


def value_projections(model: nn.Module) -> list[tuple[int, nn.Module, slice | None]]:
    """The modules that compute attention values, found by name: `v_proj`, or the values' part of a fused projection.

    Args:
        model (`nn.Module`): wrapped or not.

    Returns:
        `list[tuple[int, nn.Module, slice | None]]`: layer, module, and which of its output's last dimension are the
        values of all heads together (`None` for all of it).

    Raises:
        `ValueError`: if a layer has no such module, as where values are mixed with keys head by head.
    """
    found = []
    for number, layer in enumerate(layers_of(model)):
        named = {name.rpartition(".")[2]: module for name, module in layer.named_modules() if "base_layer" not in name}
        fused = next((named[name] for name in FUSED_PROJECTIONS if name in named), None)
        if "v_proj" in named:
            found.append((number, named["v_proj"], None))
        elif fused is not None:
            found.append((number, fused, _values_of(fused, model)))
        else:
            raise ValueError(
                f"Layer {number} of {type(unwrapped(model)).__name__} has no module that puts out attention values: "
                f"none is called `v_proj`, {', '.join(f'`{name}`' for name in FUSED_PROJECTIONS)}. Values cannot be "
                "read."
            )
    return found


def _values_of(projection: nn.Module, model: nn.Module) -> slice:
    """The last part of queries, keys and values, of which the latter two are equally wide."""
    config = unwrapped(model).config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    # `nn.Linear`, or GPT-2's `Conv1D`.
    out = getattr(projection, "out_features", None) or projection.nf
    if out != heads * head_dim + 2 * width:
        raise ValueError(
            f"The fused projection of {type(unwrapped(model)).__name__} puts out {out} numbers, not queries, keys and "
            f"values of {heads * head_dim}, {width} and {width}. Values cannot be read."
        )
    return slice(out - width, out)
