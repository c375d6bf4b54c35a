# SPDX-License-Identifier: Apache-2.0
"""Folders of wrappers: a model that stands around another one, which the folder names."""

from pathlib import Path

from ..files import whole_file, write_json
from .checkpoint_files import CheckpointError, check_safetensors, read_object


WRAPPER_CONFIG, WRAPPER_WEIGHTS = "unlearned_wrapper.json", "wrapper.safetensors"
_KEYS = {"wrapper": str, "base_model_name_or_path": str, "settings": dict, "tensors": list}


def is_wrapper_folder(folder: str | Path) -> bool:
    """Whether a folder holds a wrapper; `False` for what is no folder."""
    return (Path(folder) / WRAPPER_CONFIG).is_file()


def read_wrapper(folder: str | Path) -> dict:
    """What a wrapper's folder says: its kind, its base, its settings, names of its tensors.

    Raises:
        [`CheckpointError`]: if its files are not whole.
    """
    folder = Path(folder)
    config = read_object(folder / WRAPPER_CONFIG)
    for key, kind in _KEYS.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(f"{folder / WRAPPER_CONFIG} has no {key!r}, which is a {kind.__name__}.")
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds a full model and a wrapper (config.json and {WRAPPER_CONFIG}); which of them is "
            "meant cannot be decided. Move one of them to a folder of its own."
        )
    if config["tensors"]:
        if not (folder / WRAPPER_WEIGHTS).is_file():
            raise CheckpointError(f"{str(folder)!r} lacks {WRAPPER_WEIGHTS}, which its {WRAPPER_CONFIG} names.")
        check_safetensors(folder / WRAPPER_WEIGHTS)
    return config


def read_tensors(folder: str | Path, config: dict) -> dict:
    """A wrapper's tensors, on the CPU.

    Raises:
        [`CheckpointError`]: if they are not those that it names.
    """
    if not config["tensors"]:
        return {}
    from safetensors.torch import load_file

    found = load_file(Path(folder) / WRAPPER_WEIGHTS)
    if sorted(found) != sorted(config["tensors"]):
        raise CheckpointError(
            f"{Path(folder) / WRAPPER_WEIGHTS} holds {', '.join(sorted(found)) or 'nothing'}, and {WRAPPER_CONFIG} "
            f"names {', '.join(sorted(config['tensors']))}: they are of two wrappers."
        )
    return found


def write_wrapper(folder: str | Path, config: dict, tensors: dict) -> None:
    """Writes a wrapper's folder; what says that it is one goes last."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        raise ValueError(f"{str(folder)!r} holds a model. Give a wrapper a folder of its own.")
    if tensors:
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with whole_file(folder / WRAPPER_WEIGHTS) as part:
            save_file(kept, part)
    else:
        (folder / WRAPPER_WEIGHTS).unlink(missing_ok=True)
    write_json(folder / WRAPPER_CONFIG, config | {"tensors": sorted(tensors)}, indent=1)
