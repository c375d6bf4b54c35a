# SPDX-License-Identifier: Apache-2.0
"""What an attack's scores depend on besides the model and its rows, as JSON: two results compare where it agrees."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from numbers import Real
from types import CodeType
from typing import Any

import numpy as np
import torch

from hf_unlearn.stored.key import hash_tensors

from .shadows import Shadows
from .subjects import Subject


# Objects within objects; what lies deeper is told by its class alone.
DEPTH = 4
LONGEST = 2000


def settings_of(attack: Any) -> dict[str, Any]:
    """The class of an attack and its public attributes: numbers and texts as they are, another model by its weights,
    shadow models by their plan, functions by their name and code."""
    return {"class": type(attack).__name__, **{name: _short_enough(v) for name, v in _parts(attack, DEPTH).items()}}


def differences(name: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """How the settings of an attack differ between two results, in words.

    Args:
        name (`str`):
            The attack.
        mine (`Mapping`), other (`Mapping`):
            By attack what [`settings_of`] says.

    Returns:
        `str`: such as `"min-k: k=0.2 here, k=1.0 there"`; `None` where they agree.
    """
    one, two = _flat(mine[name]), _flat(other[name])
    differs = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    if not differs:
        return None
    here, there = (", ".join(f"{key}={_short(side.get(key))}" for key in differs) for side in (one, two))
    return f"{name}: {here} here, {there} there"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"shadows": {"note": ...}}` as `{"shadows.note": ...}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _parts(value: Any, depth: int) -> dict[str, Any]:
    """Public attributes of an object."""
    public = {name: held for name, held in vars(value).items() if not name.startswith("_")}
    return _described(public, depth)


def _short_enough(told: Any) -> Any:
    """What is long, as rows that an attack holds, by its hash."""
    text = json.dumps(told, sort_keys=True)
    return told if len(text) <= LONGEST else f"{len(text)} characters {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _described(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Subject):
        return {"weights": value.fingerprint[:16], **value.settings()}
    if isinstance(value, Shadows):
        return value.plan()
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__qualname__} {hash_tensors(value.state_dict().items(), progress=False)[:16]}"
    if isinstance(value, torch.Tensor):
        return f"tensor {hash_tensors([('', value)], progress=False)[:16]}"
    if isinstance(value, Mapping):
        return {
            str(key): _described(held, depth - 1) for key, held in sorted(value.items(), key=lambda kv: str(kv[0]))
        }
    if isinstance(value, (list, tuple)):
        return [_described(held, depth - 1) for held in value]
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, partial):
        return [_described(held, depth - 1) for held in (value.func, value.args, value.keywords)]
    if hasattr(value, "__code__"):
        return f"{value.__qualname__} {_hash_of(value.__code__)}"
    if isinstance(value, type) or depth == 0 or not hasattr(value, "__dict__"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return {"class": type(value).__qualname__, **_parts(value, depth - 1)}


def _hash_of(code: CodeType) -> str:
    """Of a function: what it does and with which constants, not where it stands."""
    parts = [code.co_code.hex(), *code.co_names]
    parts += [_hash_of(held) if isinstance(held, CodeType) else repr(held) for held in code.co_consts]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
