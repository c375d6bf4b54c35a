# SPDX-License-Identifier: Apache-2.0
r"""A LoRA adapter that starts with a part of the weights below it: \\( W \\) becomes the residual
\\( W_0 - s B_0 A_0 \\), and the adapter begins at \\( B_0, A_0 \\).

On disk it is the difference from its start, \\( s (B A - B_0 A_0) \\), a LoRA adapter of twice the rank: it works on
the original base model, whatever loads it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..files import whole_file, write_json
from .adapters import trained_adapter
from .checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointError


# Relative difference of two starts that are taken for one: what other hardware makes of the same rows.
SAME = 1e-3
Factors = Mapping[str, tuple[Tensor, Tensor]]


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model's adapter, by their names in the model.

    Raises:
        `ValueError`: if the adapter is no plain LoRA of linear layers that have weights of their own in float32.
    """
    from peft.tuners.lora import Linear, LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapter = trained_adapter(model)
    config = model.peft_config[adapter]
    init = getattr(config, "init_lora_weights", True)
    if not isinstance(config, LoraConfig) or config.use_dora or config.lora_bias or init is not True:
        raise ValueError(
            f"lora_init: for a plain LoRA adapter, and this is {config.peft_type.value} with "
            f"init_lora_weights={init!r}, use_dora={getattr(config, 'use_dora', None)}, "
            f"lora_bias={getattr(config, 'lora_bias', None)}. Leave these at their defaults, or `lora_init` out."
        )
    found = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    users: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        users[id(parameter)] = users.get(id(parameter), 0) + 1
    for name, module in found.items():
        weight = getattr(module.get_base_layer(), "weight", None)
        if not isinstance(module, Linear) or weight is None or weight.dim() != 2:
            why = f"is a {type(module.get_base_layer()).__name__}"
        elif users[id(weight)] > 1:
            why = "shares its weights with another module, which would change along"
        elif weight.dtype != torch.float32:
            why = (
                f"has weights in {weight.dtype}, which round what is left of them; load the model in float32 "
                "(`dtype: float32`; bf16=True still computes in bfloat16)"
            )
        else:
            continue
        raise ValueError(f"lora_init takes a part out of linear layers' own weights, and {name} {why}.")
    return found


@torch.no_grad()
def begin_at(model: nn.Module, factors: Factors) -> None:
    """Starts a model's adapter at other values, and takes them out of the weights below; from then on the model's
    `save_pretrained` and `load_adapter` write and read what works on the original base.

    Args:
        model (`PeftModel`): with a fresh LoRA adapter; changed in place.
        factors (`Mapping[str, tuple[Tensor, Tensor]]`): name of a layer to A `[r, in]` and B `[out, r]`, without the
            adapter's scaling.
    """
    adapter = trained_adapter(model)
    modules = dict(model.named_modules())
    for name, (a, b) in factors.items():
        layer = modules[name]
        layer.lora_A[adapter].weight.copy_(a)
        layer.lora_B[adapter].weight.copy_(b)
        layer.get_base_layer().weight.sub_(layer.get_delta_weight(adapter))
    kept = {name: tuple(value.detach().float().cpu().clone() for value in pair) for name, pair in factors.items()}
    save, load = model.save_pretrained, model.load_adapter

    def save_pretrained(save_directory, *args, is_main_process: bool = True, **kwargs) -> None:
        save(save_directory, *args, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            _write_difference(Path(save_directory), kept)

    def load_adapter(model_id, adapter_name, *args, **kwargs):
        if adapter_name != adapter:
            return load(model_id, adapter_name, *args, **kwargs)
        with _as_trained(Path(model_id), kept) as folder:
            return load(str(folder), adapter_name, *args, **kwargs)

    model.save_pretrained, model.load_adapter = save_pretrained, load_adapter


def _write_difference(folder: Path, start: Factors) -> None:
    """Turns the files of a trained adapter into those of its difference from its start."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, (a, b) in start.items():
        keys = _keys(name)
        tensors[keys[0]] = torch.cat([tensors[keys[0]], a.to(tensors[keys[0]])])
        tensors[keys[1]] = torch.cat([tensors[keys[1]], -b.to(tensors[keys[1]])], dim=1)
    with whole_file(folder / ADAPTER_WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    _scale_ranks(folder, 2.0, folder)


@contextmanager
def _as_trained(folder: Path, start: Factors) -> Iterator[Path]:
    """A folder with the adapter as it trains, from that of its difference from its start.

    Raises:
        `ValueError`: if it began elsewhere than this run's.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, (a, b) in start.items():
        keys, rank = _keys(name), len(a)
        whole = [tensors.get(key) for key in keys]
        if None in whole or len(whole[0]) != 2 * rank:
            _refuse(folder, f"{name} has another rank, or no adapter, there")
        made = whole[0][rank:].float(), -whole[1][:, rank:].float()
        if not (made[1] @ made[0] - b @ a).norm() <= SAME * (b @ a).norm():
            _refuse(folder, f"{name} differs")
        tensors[keys[0]], tensors[keys[1]] = whole[0][:rank].contiguous(), whole[1][:, :rank].contiguous()
    with TemporaryDirectory() as place:
        part = Path(place)
        save_file(tensors, part / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        _scale_ranks(folder, 0.5, part)
        yield part


def _refuse(folder: Path, why: str) -> None:
    raise CheckpointError(
        f"The adapter in {str(folder)!r} did not start where this run's did ({why}). Give the rows, settings and base "
        "model that it was made with, or start anew."
    )


def _keys(name: str) -> tuple[str, str]:
    """What PEFT's files call the factors of a layer."""
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def _scale_ranks(source: Path, by: float, folder: Path) -> None:
    """Writes an adapter's config with all ranks multiplied, and each layer's scaling as it was."""
    config = json.loads((source / ADAPTER_CONFIG).read_text())
    # The scaling is alpha / r, or alpha / sqrt(r).
    of_alpha = by**0.5 if config.get("use_rslora") else by
    config["r"], config["lora_alpha"] = round(config["r"] * by), config["lora_alpha"] * of_alpha
    for field, factor in (("rank_pattern", by), ("alpha_pattern", of_alpha)):
        scaled = {key: value * factor for key, value in (config.get(field) or {}).items()}
        config[field] = {k: round(v) for k, v in scaled.items()} if field == "rank_pattern" else scaled
    if float(config["lora_alpha"]).is_integer():
        config["lora_alpha"] = int(config["lora_alpha"])
    write_json(folder / ADAPTER_CONFIG, config)
