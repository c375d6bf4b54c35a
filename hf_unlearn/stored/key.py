# SPDX-License-Identifier: Apache-2.0
"""The name of a store: one hash of everything that its values depend on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from .store import FORMAT, Layout, describe
from .writer import raw_bytes


CHUNK_ITEMS = 1 << 24
# Settings that differ between runs and change no prediction.
IRRELEVANT = ("_name_or_path", "architectures", "use_cache")


def cache_key(
    *,
    weights: str,
    config: Mapping[str, Any],
    rows: Mapping[str, str],
    tokenizer: str,
    max_length: int | None,
    trigger: Mapping[str, Any],
    layout: Layout,
    computed: Mapping[str, Any],
) -> str:
    """Names a store; another value of anything gives another name.

    Args:
        weights (`str`): of [`hash_tensors`] or [`hash_checkpoint`].
        config (`Mapping`): `model.config.to_dict()`: equal weights under another config predict something else.
        rows (`Mapping[str, str]`): role to [`hash_rows`] of its encoded rows.
        tokenizer (`str`): of [`hash_tokenizer`].
        max_length (`int`, *optional*): where rows were cut, in tokens.
        trigger (`Mapping`): settings of the trigger; empty without one.
        layout (`Layout`): what is stored.
        computed (`Mapping`): how the values come about: dtype of the forward pass, layer, and the like.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        `TypeError`: if a setting is no JSON value.
    """
    return hash_json(
        {
            "format": FORMAT,
            "weights": weights,
            "config": {name: value for name, value in config.items() if name not in IRRELEVANT},
            "rows": rows,
            "tokenizer": tokenizer,
            "max_length": max_length,
            "trigger": trigger,
            "layout": describe(layout),
            "computed": computed,
        }
    )


def hash_tensors(tensors: Iterable[tuple[str, Tensor]], progress: bool = True) -> str:
    """Hash of names, shapes, dtypes and bits of tensors, in whatever order they come.

    Args:
        tensors (`Iterable[tuple[str, Tensor]]`):
            Such as `model.state_dict().items()`. Each is hashed before the next is asked for, so a generator may
            gather sharded weights one at a time. No more than 16 M items are copied from a device at once.
        progress (`bool`): show a bar if it takes longer than 2 seconds.

    Raises:
        `ValueError`: if a tensor holds no weights, as the shards of ZeRO-3 and models on `meta` do.
    """
    digests = []
    for name, tensor in tqdm(tensors, desc="Hashing the weights", unit="tensor", delay=2, disable=not progress):
        if tensor.is_meta or hasattr(tensor, "full_tensor") or (tensor.numel() == 0 and tensor.is_floating_point()):
            raise ValueError(
                f"{name!r} is empty, on `meta` or a shard: its values cannot be hashed. Pass a generator that gathers "
                "each tensor, or hash the checkpoint's files with `hash_checkpoint`."
            )
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        for piece in tensor.detach().reshape(-1).split(CHUNK_ITEMS):
            digest.update(raw_bytes(piece))
        digests.append(digest.hexdigest())
    if not digests:
        raise ValueError("There are no weights to hash.")
    return hash_json(sorted(digests))


def hash_checkpoint(folder: str | Path, progress: bool = True) -> str:
    """As [`hash_tensors`], of the safetensors files in a folder: no model has to be gathered, nor be loaded.

    A model in memory that was loaded in another dtype hashes to something else; name the dtype in `computed`.

    Raises:
        `ValueError`: if the folder holds no such files.
    """
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no `*.safetensors`. Save the model with `save_pretrained`.")

    def tensors():
        for path in files:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                yield from ((name, file.get_tensor(name)) for name in names)

    return hash_tensors(tensors(), progress)


def hash_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash of encoded rows, `input_ids` and `labels`, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        for values in (row["input_ids"], row["labels"]):
            values = np.asarray(values, dtype=np.int64)
            digest.update(np.int64(len(values)).tobytes() + values.tobytes())
    return digest.hexdigest()


def hash_table(rows) -> str:
    """Hash of all columns of a `datasets.Dataset`, in their order; of pictures in files, names without folders."""
    import datasets

    digest = hashlib.sha256()
    rows = rows.with_format(None)
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    for table in rows.with_format("arrow").iter(1000):
        for name in table.column_names:
            digest.update(name.encode())
            for part in _bytes_of(table[name].combine_chunks()):
                digest.update(part)
    return digest.hexdigest()


def _bytes_of(column) -> Iterable[bytes]:
    """A column's values as bytes."""
    import pyarrow as pa

    numbers = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if numbers and pa.types.is_integer(column.type.value_type) and not column.null_count:
        yield column.value_lengths().cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes()
        yield column.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes()
        return
    for value in column.to_pylist():
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            value = hashlib.sha256(value["bytes"]).hexdigest() if value["bytes"] else str(value["path"]).split("/")[-1]
        yield json.dumps(value, default=str).encode()


def hash_tokenizer(tokenizer) -> str:
    """Hash of a tokenizer's vocabulary and special tokens. What else it does to text shows in the encoded rows."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hash_json([tokenizer.get_vocab(), special, tokenizer.all_special_ids])


def hash_processor(processor) -> str:
    """Hash of a tokenizer, of what is done to pictures, or of both."""
    parts = [getattr(processor, name) for name in ("tokenizer", "image_processor") if hasattr(processor, name)]
    return hash_json(
        [
            hash_tokenizer(part) if hasattr(part, "get_vocab") else json.loads(part.to_json_string())
            for part in parts or [processor]
        ]
    )


def hash_json(value: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
