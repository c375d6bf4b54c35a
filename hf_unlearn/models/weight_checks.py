# SPDX-License-Identifier: Apache-2.0
"""Weights of which nothing can be computed: not finite, or of numbers that weights cannot be."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .checkpoint_files import CheckpointError


def check_finite(weights: Iterable[tuple[str, Tensor]], model: str) -> None:
    """Refuses weights that are NaN or infinite: everything computed of them is meaningless.

    Args:
        weights (`Iterable[tuple[str, Tensor]]`): names and tensors.
        model (`str`): whose they are, for the error.

    Raises:
        `ValueError`: naming the tensors.
    """
    bad = {name: weight.dtype for name, weight in weights if not _finite(weight)}
    if not bad:
        return
    hint = (
        "float16 holds no number above 65504: load the model as bfloat16 or float32 if its file holds larger ones."
        if torch.float16 in bad.values()
        else "Training diverged, or the file is damaged: give another checkpoint."
    )
    raise CheckpointError(f"{model} has weights that are NaN or infinite: {some_of([*bad])}. {hint}")


def _finite(weight: Tensor) -> bool:
    # Of quantised weights (one byte), sharded ones (empty here) and those on no device there is nothing to look at.
    if weight.device.type == "meta" or not weight.numel():
        return True
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return True
    # Without a copy of the weight's size; NaN goes through both.
    least, largest = weight.detach().aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def check_dtype(dtype) -> None:
    """Refuses a `dtype` that weights cannot be loaded as."""
    if dtype is None or dtype == "auto" or isinstance(dtype, dict):
        return
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f"dtype={dtype!r}; allowed: 'auto', 'float32', 'bfloat16', 'float16'.")


def some_of(names: list[str]) -> str:
    """The first names of many, and how many more there are."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} others' if len(names) > 3 else ''}"
