# SPDX-License-Identifier: Apache-2.0
"""The embeddings of a base model beside an adapter that was trained with added tokens."""

from pathlib import Path

from torch import nn

from .checkpoint_files import ADAPTER_WEIGHTS, CheckpointError
from .weight_checks import some_of


def fit_embeddings(base: nn.Module, folder: str) -> None:
    """Gives a base as many embeddings as an adapter's files hold.

    Raises:
        `ValueError`: if the files do not hold all rows of those that are more.
    """
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
