# SPDX-License-Identifier: Apache-2.0
"""An adapter from its files on top of its base: every tensor of the files, and every tensor that the adapter has."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint_files import ADAPTER_WEIGHTS, CheckpointError, readable
from .weight_checks import check_finite, some_of


def put_adapter(base: nn.Module, folder: str) -> nn.Module:
    """Puts a saved adapter on a model.

    Where the adapter was trained beside added tokens, its files hold the embeddings too, and the base is given as many
    rows before.

    Args:
        base (`nn.Module`): what the adapter was trained on; changed in place.
        folder (`str`): holds the adapter's config and weights.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        `ValueError`: if adapter and base do not fit, or the adapter is not finite.
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    before = {id(parameter) for parameter in base.parameters()}
    with readable(f"The adapter {folder!r} cannot be put on its base model {base.config._name_or_path!r}"):
        _resize(base, folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, folder)
        # Loaded once more for what PEFT says of names only to those who call this themselves.
        found = model.load_adapter(folder, model.active_adapter)
        unused = set(found.unexpected_keys)
        saved = load_peft_weights(folder, device="cpu") if unused else {}
    # PEFT saves some tensors under two names.
    used = [tensor for name, tensor in saved.items() if name not in unused]
    copies = {name for name in unused & saved.keys() if any(_same(saved[name], tensor) for tensor in used)}
    if absent := sorted({*found.missing_keys, *(unused - copies)}):
        raise CheckpointError(
            f"The adapter {folder!r} is not one of the model it names, or its config and weights are not of one "
            f"adapter: {some_of(absent)} {'is' if len(absent) == 1 else 'are'} on one side only. Give the base model "
            "that it was trained on."
        )
    check_finite(((name, p) for name, p in model.named_parameters() if id(p) not in before), folder)
    return model


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _resize(base: nn.Module, folder: str) -> None:
    """Gives a base as many embeddings as an adapter's files hold."""
    from safetensors import safe_open

    file = Path(folder) / ADAPTER_WEIGHTS
    modules = [module for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None]
    rows, width = modules[0].weight.shape
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    saved = {}
    for name, module in base.named_modules():
        if any(module is embedding for embedding in modules):
            keys = [
                key for key in shapes if f".{name}." in f".{key}" and key.endswith(".weight") and "lora" not in key
            ]
            saved[name] = [shapes[key][0] for key in keys if len(shapes[key]) == 2 and shapes[key][1] == width]
    sizes = {size for found in saved.values() for size in found} - {rows}
    if not sizes:
        return
    if len(sizes) > 1 or not all(saved.values()):
        bare = [name for name, found in saved.items() if not found] or [*saved]
        raise CheckpointError(
            f"The adapter {folder!r} was trained beside {' or '.join(map(str, sorted(sizes)))} embeddings, its base "
            f"model has {rows}, and the adapter's file does not hold all rows of {some_of(bare)}. Save it again with "
            "`save_pretrained(..., save_embedding_layers=True)`."
        )
    base.resize_token_embeddings(sizes.pop(), mean_resizing=False)
