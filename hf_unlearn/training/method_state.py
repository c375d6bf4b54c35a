# SPDX-License-Identifier: Apache-2.0
"""What a method has to find again on resume beside weights and optimizer: control vectors, dual weights, a stage.

A trainer returns it from `method_state` and takes it in `load_method_state`; it is one file in every checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import whole_file
from ..models.checkpoint_paths import METHOD_STATE


def write_method_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes tensors as tensors and everything else as JSON, all into one file.

    Raises:
        `ValueError`: for a value that is neither a tensor nor JSON.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().clone() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    for name, value in plain.items():
        try:
            same = json.loads(json.dumps(value)) == value
        except TypeError:
            same = False
        if not same:
            raise ValueError(
                f"method_state: {name!r} is a {type(value).__name__} that JSON does not give back ({value!r}). Return "
                "tensors, numbers, strings, lists and dicts with string keys."
            )
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole_file(Path(folder) / METHOD_STATE) as part:
        save_file(contiguous, part, metadata={"values": json.dumps(plain)})


def read_method_state(folder: str | Path) -> dict[str, Any]:
    """What [`write_method_state`] was given, tensors on the CPU; empty if the folder holds none."""
    from safetensors import safe_open

    path = Path(folder) / METHOD_STATE
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["values"])
        return {**{name: file.get_tensor(name) for name in file.keys()}, **plain}  # noqa: SIM118
