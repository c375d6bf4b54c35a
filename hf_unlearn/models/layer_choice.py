# SPDX-License-Identifier: Apache-2.0
"""Which parameters of chosen layers train: by name, or by their position in a layer as published code has it."""

import logging
import re
from collections.abc import Sequence

from torch import nn

from .activations import layers_of
from .adapters import is_peft_model


logger = logging.getLogger(__name__)


def parameters_by_name(model: nn.Module, layers: Sequence[int], patterns: Sequence[str]) -> list[str]:
    """Full names of the parameters of `layers` that one of `patterns` matches (`re.search`).

    Raises:
        `ValueError`: if none does.
    """
    names = [name for layer in layers for name in _names_in(model, layer)]
    chosen = [name for name in names if any(re.search(pattern, name) for pattern in patterns)]
    if not chosen:
        matrices = [name for name in names if not re.search(r"bias$|norm", name)]
        raise ValueError(
            f"module_names={list(patterns)} match no parameter of the layers {list(layers)}. They are named like: "
            f"{', '.join(matrices[:9])}."
        )
    return chosen


def parameters_by_position(model: nn.Module, layers: Sequence[int], positions: Sequence[int]) -> list[str]:
    """Full names of the parameters at some positions in each layer's list; told, for the same position is another
    matrix in another model.

    Raises:
        `ValueError`: if a layer has no such position.
    """
    chosen = []
    for layer in layers:
        names = _names_in(model, layer)
        if not all(0 <= position < len(names) for position in positions):
            raise ValueError(f"param_ids={list(positions)}; a layer has {len(names)} parameters, counted from 0.")
        chosen += [names[position] for position in positions]
    logger.info("param_ids=%s are %s.", list(positions), ", ".join(chosen))
    return chosen


def check_below(model: nn.Module, patterns: Sequence[str], layer: int, named: str = "layer_id") -> None:
    """Refuses `trainable_modules` that match what a layer's output does not depend on; `named` is the layer's setting.

    Raises:
        `ValueError`: with the names.
    """
    below = {name for number in range(layer + 1) for name in _names_in(model, number)}
    # By identity: a tied head is the embedding.
    parameters = {id(p) for name, p in model.named_parameters() if name in below}
    parameters |= {id(p) for p in model.get_input_embeddings().parameters()}
    matched = {name: p for name, p in model.named_parameters() if any(re.search(x, name) for x in patterns)}
    above = [name for name, parameter in matched.items() if id(parameter) not in parameters]
    if above:
        raise ValueError(
            f"trainable_modules={list(patterns)}: {', '.join(above[:4])} {'and others ' if above[4:] else ''}cannot "
            f"change the output of {named}={layer}. Name parameters of layers 0 to {layer}, or leave it out."
        )


def freeze_outside(model: nn.Module, layers: Sequence[int], patterns: Sequence[str] = ("",)) -> None:
    """Leaves trainable only what is trainable already, in one of `layers`, and matched by one of `patterns`.

    Raises:
        `ValueError`: if that is nothing.
    """
    inside = {name for layer in layers for name in _names_in(model, layer)}
    inside = {name for name in inside if any(re.search(pattern, name) for pattern in patterns)}
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad and name in inside}
    if not kept:
        raise ValueError(
            f"The adapter trains nothing in the layers {list(layers)}, which are to change. Let its `target_modules` "
            "and `layers_to_transform` reach them, or name others in `layer_ids`."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


def names_up_to(model: nn.Module, layer: int, embeddings: bool = True) -> list[str]:
    """Regular expressions, one a parameter: those of the layers up to one, and the embeddings'."""
    modules = list(layers_of(model))[: layer + 1] + [model.get_input_embeddings()] * embeddings
    below = {id(parameter) for module in modules for parameter in module.parameters()}
    return [f"^{re.escape(name)}$" for name, parameter in model.named_parameters() if id(parameter) in below]


def check_adapter_saved(model: nn.Module, method: str) -> None:
    """Refuses an adapter of which some layers are to be frozen, where only what trains is saved.

    Raises:
        `ValueError`: with ZeRO-3.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_peft_model(model) and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"{method} trains an adapter in a few layers only, and ZeRO-3 saves what trains: the rest of an adapter "
            "that came in trained would be lost. Merge it first (`merge_and_unload()`), or take another launch."
        )


def _names_in(model: nn.Module, layer: int) -> list[str]:
    wanted = layers_of(model)[layer]
    prefix = next(name for name, module in model.named_modules() if module is wanted)
    return [name for name, _ in model.named_parameters() if name.startswith(f"{prefix}.")]
