# SPDX-License-Identifier: Apache-2.0
"""Masks that are given as files, and masks as they stand in checkpoints: one bit a weight."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


def check_mask_file(path: str) -> None:
    """Raises `ValueError` unless a file holds bool or uint8 tensors; reads its header alone."""
    if not Path(path).is_file():
        raise ValueError(f"mask_file={path!r} is no file. Give a safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"mask_file={path!r} is no safetensors file ({error}).") from None
    wrong = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in ("BOOL", "U8")]
    if wrong or not kinds:
        raise ValueError(
            f"mask_file={path!r}: {', '.join(wrong[:4]) or 'no tensor'}; give a bool or uint8 tensor for each weight."
        )


def check_mask_fits(path: str, model: nn.Module) -> None:
    """Raises `ValueError` for a file that holds a mask of another model."""
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name, shape in found.items():
        if shapes.get(name) != shape:
            has = f"one of {shapes[name]}" if name in shapes else "none of that name"
            raise ValueError(f"mask_file={path!r} has {name} of shape {shape}, and the model has {has}.")


def read_mask(path: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The mask of the weights that train, on their devices.

    Raises:
        `ValueError`: if the file lacks one of them, or holds something else than 0 and 1.
    """
    masks = {}
    with safe_open(path, framework="pt") as file:
        if missing := sorted(set(parameters) - set(file.keys())):
            raise ValueError(
                f"mask_file={path!r} lacks {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}, which "
                "would train. Add them, or choose what trains by `trainable_modules`."
            )
        for name, weight in parameters.items():
            given = file.get_tensor(name)
            if given.dtype != torch.bool and given.numel() and given.max() > 1:
                raise ValueError(
                    f"mask_file={path!r}: {name} holds {given.max()}; give 1 where a weight trains, or 0."
                )
            masks[name] = given.bool().to(weight.device)
    return masks


def packed(mask: Tensor) -> Tensor:
    """A mask of any shape as bits, `[ceil(n / 8)]` of uint8 on the CPU."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The mask in the shape and on the device of a weight."""
    import numpy as np

    flat = np.unpackbits(bits.numpy(), count=like.numel()).astype(bool)
    return torch.from_numpy(flat).view(like.shape).to(like.device)
