# SPDX-License-Identifier: Apache-2.0
"""A model merged with another one of its architecture, by the mean of their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...data.benchmarks import resolve_model
from ...models.loading import config_of
from ..checkpoints import check_checkpoint_path, check_fits
from ..robustness.weights import check_plain, named_configs


def check_mergeable(args: Any) -> None:
    """Refuses a model to merge with that is not there, is quantised, or has other weights than one of the models; no
    weights are loaded for that.

    Args:
        args ([`QuantizeArguments`]): with `merge`.

    Raises:
        `ValueError`
    """
    path = resolve_model(args.merge)
    check_checkpoint_path(path)
    check_fits(path, "questions", args.trust_remote_code)
    config = config_of(path, args.trust_remote_code)
    check_plain(args.merge, config)
    ours = _shapes(config, args)
    for name, other in named_configs(args):
        _check_same(ours, _shapes(other, args), args.merge, name)


def is_compared_with(args: Any) -> bool:
    """Whether the model to merge with is the original or the retrained one, which merging leaves as they are."""
    others = (args.original_model_name_or_path, args.retrained_model_name_or_path)
    return resolve_model(args.merge) in [resolve_model(name) for name in others if name is not None]


@contextmanager
def merged_with(model: nn.Module, other: nn.Module, weight: float, named: str) -> Iterator[float]:
    """The model with `(1 - weight)` of its own weights and `weight` of the other's, in float32 and back; gives the
    share that are other values now. Afterwards, and after an exception, they are the same bit for bit.

    Args:
        model, other (`nn.Module`): of one architecture; buffers stay the model's own.
        weight (`float`): between 0 and 1.
        named (`str`): what the other is called in errors.
    """
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    _check_same(*({name: tuple(p.shape) for name, p in held.items()} for held in (theirs, ours)), named, "the model")
    kept = {name: parameter.detach().clone() for name, parameter in ours.items()}
    try:
        moved = 0
        for name, parameter in ours.items():
            mine, its = kept[name].float(), theirs[name].detach().to(parameter.device).float()
            parameter.detach().copy_(torch.lerp(mine, its, weight))
            moved += int((parameter.detach() != kept[name]).sum())
        yield moved / sum(held.numel() for held in kept.values())
    finally:
        for name, parameter in ours.items():
            parameter.detach().copy_(kept[name])


def _shapes(config: Any, args: Any) -> dict[str, tuple[int, ...]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check_same(ours: dict[str, tuple], theirs: dict[str, tuple], named: str, other: str) -> None:
    differs = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differs:
        shapes = (shape and "x".join(map(str, shape)) for shape in (ours.get(differs[0]), theirs.get(differs[0])))
        said = " and ".join(shape or "not there" for shape in shapes)
        raise ValueError(
            f"merge={named!r} and {other} differ in their weights ({differs[0]}: {said}), and a mean requires the "
            "same ones. Give a model of the same architecture and sizes."
        )
