# SPDX-License-Identifier: Apache-2.0
"""What an adapter's config does to a layer, tried on a small one: there are many kinds and settings, and more come."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn


# What names parts of a model that the small layer has not.
_ELSEWHERE = (
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "task_type",
)


def on_a_small_layer(peft_config, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A small linear layer, the same at every call, with a fresh adapter drawn from `seed`, and the layer's weight as
    it was before. Raises whatever an initialisation raises that needs more than weights."""
    from peft import inject_adapter_in_model

    size = max(64, 2 * peft_config.r)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = nn.ModuleDict({"layer": nn.Linear(size, size)})
        before = model["layer"].weight.detach().clone()
        torch.manual_seed(seed)
        config = replace(peft_config, target_modules=["layer"], **dict.fromkeys(_ELSEWHERE))
        inject_adapter_in_model(config, model)
    return model["layer"].eval(), before


def start_changes_weights(peft_config) -> bool:
    """Whether a fresh adapter changes the weights below it, as PiSSA does: what it adds to a model is then its
    difference from its start. Not so where the initialisation cannot be tried."""
    try:
        layer, before = on_a_small_layer(peft_config)
    except Exception:  # noqa: BLE001
        return False
    return not torch.equal(layer.get_base_layer().weight, before)


@torch.no_grad()
def adds_product(peft_config) -> bool:
    """Whether an adapter adds the product of its factors A and B, scaled, to a layer's weight, and nothing else."""
    try:
        layer, _ = on_a_small_layer(peft_config)
        (name,) = layer.active_adapters
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        generator = torch.Generator().manual_seed(0)
        for factor in (a, b):
            factor.copy_(torch.randn(factor.shape, generator=generator))
        inputs = torch.randn((4, a.shape[1]), generator=generator)
        expected = layer.get_base_layer()(inputs) + layer.scaling[name] * inputs @ a.T @ b.T
        return torch.allclose(layer(inputs), expected, rtol=1e-3, atol=1e-3)
    except Exception:  # noqa: BLE001
        # It has no such factors, or takes more than a layer's input.
        return False
