# SPDX-License-Identifier: Apache-2.0
"""A model without dropout while it trains, so that the policy before its first update is its reference."""

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn


logger = logging.getLogger(__name__)

# Noise on what a router reads. PhiMoE's `router_jitter_noise` is none: it decides in evaluation too.
NOISE = ("jitter_noise", "input_jitter_noise")


def dropout_as_asked(args, model: nn.Module) -> AbstractContextManager:
    """What surrounds training: [`without_dropout`], unless `disable_dropout` is off."""
    return without_dropout(model) if args.disable_dropout else nullcontext()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """While entered, every chance of dropout in a model, its adapters included, is 0; afterwards it is as it was.

    Covers dropout modules, numbers that modules keep for themselves, and numbers that they read from their config.
    The config of `model` itself, which is the one that is saved, is left alone.
    """
    changed: list[tuple[nn.Module, str, Any]] = []
    told: dict[str, float] = {}
    without: dict[int, Any] = {}
    saved = {id(root) for root in (model, getattr(model, "get_base_model", lambda: model)())}
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if _is_chance(module, name, value):
                told[_name_of(path, name)] = value
                changed.append((module, name, value))
                setattr(module, name, 0.0)
        config = vars(module).get("config")
        if id(module) in saved or not hasattr(config, "to_dict"):
            continue
        if id(config) not in without:
            without[id(config)] = _without(config, told)
        if without[id(config)] is not None:
            changed.append((module, "config", config))
            module.config = without[id(config)]
    if told:
        listed = ", ".join(f"{name} {value:g}" for name, value in sorted(told.items()))
        logger.info("Dropout is off in training: %s. disable_dropout=False leaves it on.", listed)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model drops at random in training."""
    return any(
        any(_is_chance(module, name, value) for name, value in vars(module).items())
        or (hasattr(config := vars(module).get("config"), "to_dict") and _without(config, {}) is not None)
        for module in model.modules()
    )


def _is_chance(module: nn.Module, name: str, value) -> bool:
    if name == "p":
        return isinstance(module, nn.modules.dropout._DropoutNd) and value > 0
    return _named_chance(name, value)


def _named_chance(name: str, value) -> bool:
    """Such as `attention_dropout`, `resid_pdrop`, `layerdrop`, `drop_path_rate`. Whether this was all that is random
    is found by trying, see `forward.trial`."""
    return isinstance(value, float) and value > 0 and ("drop" in name or name in NOISE)


def _name_of(path: str, attribute: str) -> str:
    """What a chance is called: a dropout module by its own name."""
    if attribute != "p":
        return attribute
    return next((part for part in reversed(path.split(".")) if "drop" in part), path)


def _without(config, told: dict[str, float]):
    """A copy of a config with every chance 0; `None` where all are."""
    copied = copy.deepcopy(config)
    found = {}
    for owner in _configs(copied):
        for name, value in list(vars(owner).items()):
            if _named_chance(name, value):
                found[name] = value
                setattr(owner, name, 0.0)
    told |= found
    return copied if found else None


def _configs(config) -> list:
    """A config and those inside it."""
    inside = [value for value in vars(config).values() if hasattr(value, "to_dict") and hasattr(value, "model_type")]
    return [config, *(own for value in inside for own in _configs(value))]
