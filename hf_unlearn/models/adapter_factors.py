# SPDX-License-Identifier: Apache-2.0
"""The factors of LoRA adapters: those of a folder, and those that train."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .adapter_trial import adds_product, start_changes_weights
from .adapters import trained_adapter
from .checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS


STARTS_APART = "{} and {}: such an adapter adds its difference from its start, which is not compared. Leave one out."


@dataclass(frozen=True)
class Factors:
    """What LoRA adds to one layer's weight: `scaling * b @ a`.

    Args:
        a (`Tensor`): `[r, in]`.
        b (`Tensor`): `[out, r]`.
        scaling (`float`): of the product.
    """

    a: Tensor
    b: Tensor
    scaling: float

    def minus(self, other: "Factors") -> "Factors":
        """The difference of two, of the rank of both together."""
        a = torch.cat([self.a, other.a.to(self.a)])
        return Factors(a, torch.cat([self.scaling * self.b, -other.scaling * other.b.to(self.b)], dim=1), 1.0)

    def square_norm(self) -> Tensor:
        """The squared Frobenius norm of what is added, without the product itself."""
        return self.scaling**2 * ((self.b.T @ self.b) * (self.a @ self.a.T)).sum()


def check_lora_folder(field: str, folder: str) -> None:
    """Raises `ValueError` unless a folder holds a LoRA adapter; reads no weights."""
    from peft import LoraConfig, PeftConfig

    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(f"{field}: {folder!r} has no {missing[0]}. Give the folder of a saved LoRA adapter.")
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig) or not adds_product(config):
        raise ValueError(f"{field}: {folder!r} is a {_kind(config)} adapter. Give that of a LoRA adapter.")
    if start_changes_weights(config):
        raise ValueError(
            f"{field}: {folder!r} has init_lora_weights={config.init_lora_weights!r}: such an adapter adds its "
            "difference from its start, which its files do not hold. Convert it (PEFT's `save_pretrained` with "
            "`path_initial_model_for_weight_conversion`), or give another."
        )


def _kind(config) -> str:
    return "DoRA" if getattr(config, "use_dora", False) else getattr(config.peft_type, "value", config.peft_type)


def saved_factors(folder: str) -> dict[str, Factors]:
    """The factors of an adapter in a folder, by the names of layers."""
    from peft import PeftConfig
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file

    config, tensors = PeftConfig.from_pretrained(folder), load_file(Path(folder) / ADAPTER_WEIGHTS)
    found = {}
    for key, a in tensors.items():
        name, _, rest = key.partition(".lora_A.")
        if not rest:
            continue
        patterns = config.alpha_pattern or {}
        alpha = patterns.get(get_pattern_key(patterns.keys(), name), config.lora_alpha)
        scaling = alpha / (len(a) ** 0.5 if config.use_rslora else len(a))
        found[name] = Factors(a, tensors[f"{name}.lora_B.{rest}"], scaling)
    return found


def trained_factors(model: nn.Module, of: Mapping[str, object] | None = None) -> dict[str, Factors]:
    """The factors of a model's adapter as they are now, with their gradients, by the names of layers; of some alone,
    if given."""
    adapter = trained_adapter(model)
    return {
        name: Factors(module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter])
        for name, module in model.named_modules()
        if (of is None or name in of) and adapter in getattr(module, "lora_A", {})
    }


def check_shared(field: str, folder: str, given: Mapping[str, Factors], model: nn.Module) -> dict[str, Factors]:
    """Those of a folder's factors whose layers the model's adapter has too.

    Raises:
        `ValueError`: if there are none, or one is of another size, or the model's adapter adds something else than
            its factors' product.
    """
    config = model.peft_config[trained_adapter(model)]
    if not adds_product(config):
        raise ValueError(
            f"{field}: a {_kind(config)} adapter trains, whose factors A and B are not all that it adds. Train a LoRA "
            "adapter."
        )
    if start_changes_weights(config):
        raise ValueError(STARTS_APART.format(field, f"init_lora_weights={config.init_lora_weights!r}"))
    own = trained_factors(model)
    if not (shared := {name: factors for name, factors in given.items() if name in own}):
        raise ValueError(
            f"{field}: the adapter in {folder!r} is of {', '.join(list(given)[:2])}, ..., and that which trains of "
            f"{', '.join(list(own)[:2]) or 'no layer, as it is no LoRA'}. Give one that has layers in common with it."
        )
    for name, factors in shared.items():
        sizes = [(pair.b.shape[0], pair.a.shape[1]) for pair in (factors, own[name])]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{field}: {name} is {sizes[0]} in {folder!r} and {sizes[1]} in the model. Give an adapter of it."
            )
    return shared
