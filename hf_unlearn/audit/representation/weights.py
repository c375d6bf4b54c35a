# SPDX-License-Identifier: Apache-2.0
"""How far weights moved: no forward pass is needed for that."""

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..quantize.formats import FORMATS


# Larger matrices' largest singular value is estimated.
EXACT = 1024


def matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight matrix (or stack of them) as the model computes with it, each once: of layers
    that an adapter changes, with the adapter's change."""
    seen = set()
    for name, module in model.named_modules():
        adapted = hasattr(module, "base_layer") and hasattr(module, "merge")
        below = module.get_base_layer() if adapted else module
        keys = [
            key for key, held in below.named_parameters(recurse=False) if _is_matrix(held) and id(held) not in seen
        ]
        if not keys or _is_inside(name):
            continue
        seen |= {id(getattr(below, key)) for key in keys}
        if adapted and not module.merged and not module.disable_adapters:
            below = copy.deepcopy(module)
            below.merge()
            below = below.get_base_layer()
        for key in keys:
            yield _plain(name, key), getattr(below, key).detach()


def movement(model: nn.Module, original: nn.Module) -> dict[str, Any]:
    """How a model's matrices differ from the original's.

    Returns:
        `dict`: `relative_change` (Frobenius norm of the difference over that of the original), `stable_rank` (squared
        Frobenius norm of the difference over its squared largest singular value, the mean of matrices that changed)
        and `same_code` (share of the decoder layers' weights with the same code in 4-bit NormalFloat: quantisation
        undoes updates inside of a code's cell, and leaves embeddings and head alone); the same `by_module` and
        `by_layer`, and `n`, the weights compared. Only `reason` where matrices are not alike.
    """
    theirs = dict(matrices(original))
    total, modules, layers = _Sums(), defaultdict(_Sums), defaultdict(_Sums)
    for name, mine in matrices(model):
        weight = theirs.get(name)
        if weight is None:
            continue
        if weight.shape != mine.shape:
            return {"reason": f"{name} has the shape {[*mine.shape]}, and {[*weight.shape]} in the original model"}
        del theirs[name]
        sums = _compared(mine.to(weight.device), weight)
        found = re.search(r"\.(\d+)\.", name)
        for part in (total, modules[name.rpartition(".")[2]], *([layers[int(found[1])]] if found else [])):
            part.add(sums)
    if theirs:
        return {"reason": f"the original model has {next(iter(theirs))}, and this model no such matrix"}
    inner = _Sums()
    for part in layers.values():
        inner.add(part)
    return total.told() | {
        "same_code": inner.told()["same_code"],
        "n": total.n,
        "by_module": {name: part.told() for name, part in modules.items()},
        "by_layer": [layers[layer].told() for layer in sorted(layers)],
    }


class _Sums:
    """Sums over matrices."""

    def __init__(self, n=0, change=0.0, norm=0.0, same=0, ranks=()):
        self.n, self.change, self.norm, self.same, self.ranks = n, change, norm, same, [*ranks]

    def add(self, other: "_Sums") -> None:
        self.n, self.same = self.n + other.n, self.same + other.same
        self.change, self.norm = self.change + other.change, self.norm + other.norm
        self.ranks += other.ranks

    def told(self) -> dict[str, float | None]:
        return {
            "relative_change": (self.change / self.norm) ** 0.5 if self.norm else None,
            "same_code": self.same / self.n if self.n else None,
            "stable_rank": sum(self.ranks) / len(self.ranks) if self.ranks else None,
        }


def _compared(weight: Tensor, original: Tensor) -> _Sums:
    weight, original = weight.float(), original.float()
    difference = weight - original
    change, norm = (float(held.square().sum(dtype=torch.float64)) for held in (difference, original))
    mine, theirs = (FORMATS["nf4"].coded(held)[0] for held in (weight, original))
    ranks = [
        float(matrix.square().sum()) / _largest(matrix) ** 2
        for matrix in difference.reshape(-1, *difference.shape[-2:])
        if matrix.any()
    ]
    return _Sums(weight.numel(), change, norm, int((mine == theirs).sum()), ranks)


def _largest(matrix: Tensor) -> float:
    """The largest singular value."""
    if min(matrix.shape) <= EXACT:
        return float(torch.linalg.matrix_norm(matrix, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(torch.svd_lowrank(matrix, q=8, niter=4)[1][0])


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and parameter.is_floating_point()


def _is_inside(name: str) -> bool:
    """Whether a module is a part of an adapted layer, which is taken as a whole, or what an adapter stands in for."""
    parts = name.split(".")
    return "base_layer" in parts or any(part.startswith(("lora_", "original_module")) for part in parts)


def _plain(module: str, parameter: str) -> str:
    """A parameter's name as the model has it without PEFT."""
    name = re.sub(r"\.modules_to_save\.[^.]+", "", f"{module}.{parameter}".removeprefix("base_model.model."))
    return name.removesuffix(".weight")
