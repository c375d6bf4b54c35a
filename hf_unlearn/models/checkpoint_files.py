# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint, checked before anything is loaded: whole, of a known kind, and not of two models at once."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_ADAPTER = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# Arguments of `from_pretrained` that make it look for weights elsewhere.
ELSEWHERE = ("gguf_file", "subfolder", "variant")
LONGEST = 400


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; says which file, and why."""


@contextmanager
def readable(what: str, *passing: type[Exception]) -> Iterator[None]:
    """Says in one line what could not be read, whatever a library raised for it.

    Loading goes through several libraries and through files that somebody else wrote, so the errors have no common
    class. Those of this package pass as they are; the original stays the cause of the line.

    Args:
        what (`str`): the beginning of the line, such as "No model can be loaded from 'x'".
        passing (`type`): errors that are not the files', and pass too.

    Raises:
        [`CheckpointError`]
    """
    try:
        yield
    except (CheckpointError, *passing):
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or "no reason given"
        if not isinstance(error, (OSError, ValueError)):
            told = f"{type(error).__name__}: {told}"
        told = told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."
        raise CheckpointError(f"{what}: {told}") from error


def check_files(folder: Path) -> None:
    """Refuses a folder of full weights or of an adapter that is not whole; see [`check_model_files`]."""
    if (folder / "config.json").is_file():
        check_model_files(folder)
    elif (folder / ADAPTER_CONFIG).is_file():
        check_adapter_files(folder)


def check_model_files(folder: Path, loading: Mapping | None = None) -> None:
    """Refuses a folder of full weights that is not whole; headers are read, weights are not.

    Args:
        folder (`Path`): holds a `config.json`.
        loading (`Mapping`, *optional*): arguments of `from_pretrained`, some of which name other files.

    Raises:
        [`CheckpointError`]: naming the file.
    """
    read_object(folder / "config.json")
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds a full model and an adapter (config.json and {ADAPTER_CONFIG}); which of them is "
            "meant cannot be decided. Move one of them to a folder of its own."
        )
    if any((loading or {}).get(name) for name in ELSEWHERE):
        return
    single, shards = _weights(folder, WEIGHTS, INDEX, check_safetensors)
    pickled = None
    if single is None and not shards:
        pickled, shards = _weights(folder, PICKLED, PICKLED_INDEX, check_pickle)
    if single and shards:
        raise CheckpointError(
            f"{str(folder)!r} holds two checkpoints, {WEIGHTS} and the shards of {INDEX}; only the first would be "
            "read. Delete the one that is not meant."
        )
    if not (single or pickled or shards):
        beside = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", *NOT_READ)]
        raise CheckpointError(
            f"{str(folder)!r} holds a config.json and no weights: neither {WEIGHTS} nor {INDEX}"
            f"{f' (there is {_some(beside)})' if beside else ''}. Give a folder written by `save_pretrained`."
        )


# Formats of weights that transformers does not read from a folder by itself.
NOT_READ = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")


def _weights(folder: Path, name: str, index: str, check) -> tuple[Path | None, list[Path]]:
    """A folder's single file of weights and its shards, each checked."""
    single = folder / name if (folder / name).is_file() else None
    shards = []
    if (folder / index).is_file():
        named = read_object(folder / index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
            raise CheckpointError(f"{folder / index} names no shards (`weight_map`). Copy it again.")
        shards = [folder / shard for shard in sorted(set(named.values()))]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent and single is None:
            raise CheckpointError(f"{str(folder)!r} lacks {_some(absent)}, which {index} names. Copy it again.")
        # An index that was left behind when one file took the place of its shards.
        shards = [] if absent else shards
    for file in (*([single] if single else []), *shards):
        check(file)
    return single, shards


def check_adapter_files(folder: Path) -> dict:
    """Refuses an adapter's folder that is not whole; returns the content of its `adapter_config.json`.

    Raises:
        [`CheckpointError`]: naming the file.
    """
    config = read_object(folder / ADAPTER_CONFIG)
    if (folder / ADAPTER_WEIGHTS).is_file():
        check_safetensors(folder / ADAPTER_WEIGHTS)
    elif (folder / PICKLED_ADAPTER).is_file():
        check_pickle(folder / PICKLED_ADAPTER)
    else:
        raise CheckpointError(
            f"{str(folder)!r} holds an {ADAPTER_CONFIG} and no weights ({ADAPTER_WEIGHTS}). Give a folder written by "
            "`save_pretrained`."
        )
    return config


def check_safetensors(file: Path) -> None:
    """Refuses a safetensors file that is damaged, by its header and its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no whole safetensors file ({_damage(file, error)}). Copy it again."
        ) from error


def _damage(file: Path, error: Exception) -> str:
    size = file.stat().st_size
    if size == 0:
        return "it is empty"
    with file.open("rb") as opened:
        if opened.read(7) == b"version":
            return "it is a pointer of Git LFS; `git lfs pull` fetches the file itself"
    return f"{size:,} bytes; {' '.join(str(error).split())}"


def check_pickle(file: Path) -> None:
    """Refuses a pickled checkpoint that is damaged or holds more than tensors, without reading these."""
    import torch

    try:
        try:
            torch.load(file, map_location="meta", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of PyTorch before 1.6 are not mapped but read.
            torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file} is not loaded: it is damaged, or a pickle that holds more than tensors and could run code. Give "
            "safetensors: `save_pretrained` writes them."
        ) from error


def read_object(file: Path) -> dict:
    """What a JSON file of a checkpoint holds.

    Raises:
        [`CheckpointError`]: if it is missing, or holds no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        size = file.stat().st_size
        raise CheckpointError(f"{file} is {'no valid JSON' if size else 'empty'}. Copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object. Copy it again.")
    return content


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
