# SPDX-License-Identifier: Apache-2.0
"""What a split consists of, written down so that it can be made again and checked."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import write_json
from .splits import SETS, Split


if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 1


def write_manifest(
    split: Split, path: str | os.PathLike, sources: Sequence[str | os.PathLike] = (), command: str | None = None
) -> Path:
    """
    Write the manifest of a split.

    Args:
        split ([`Split`]):
            The split.
        path (`str` or `Path`):
            The JSON file.
        sources (`Sequence`, *optional*):
            Files the rows were read from; their SHA-256 is kept, by name.
        command (`str`, *optional*):
            How the split was made; the running command line by default.

    Returns:
        `Path`: the file.
    """
    ids = {name: split.example_ids(name) for name in SETS}
    content = {
        "manifest_version": VERSION,
        **split.settings,
        "sizes": {name: len(of_set) for name, of_set in ids.items()},
        "sources": {Path(source).name: _file_hash(source) for source in sources},
        "command": command or shlex.join(sys.orig_argv),
        "sha256": {name: _hash(of_set) for name, of_set in ids.items()},
        "example_ids": ids,
    }
    return write_json(path, content, indent=1)


def read_manifest(path: str | os.PathLike, sources: Sequence[str | os.PathLike] = ()) -> dict:
    """
    Read a manifest and check it.

    Args:
        path (`str` or `Path`):
            The JSON file.
        sources (`Sequence`, *optional*):
            Files to compare with those the rows were read from.

    Returns:
        `dict`: what [`write_manifest`] wrote.

    Raises:
        `ValueError`: if it is no manifest, its ids are not those it was written with, or a source is another file.
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
        version = manifest["manifest_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest that `write_manifest` wrote ({error!r}).") from error
    if version != VERSION:
        raise ValueError(f"{path} has manifest_version {version!r}; this version of hf_unlearn reads {VERSION}.")
    for name in SETS:
        if _hash(manifest["example_ids"][name]) != manifest["sha256"][name]:
            raise ValueError(f"{path} was changed: the example_ids of {name} do not give the hash beside them.")
    for source in sources:
        known = manifest["sources"].get(Path(source).name)
        if known != _file_hash(source):
            raise ValueError(
                f"{source} is not the file that the split was made of: {path} "
                + ("knows no file of that name." if known is None else "has another SHA-256.")
            )
    return manifest


def split_of(manifest: dict, train: Dataset, val: Dataset) -> Split:
    """
    The split that a manifest describes, found by `example_id`.

    Raises:
        `ValueError`: if rows are missing.
    """
    places = {
        id(rows): {example_id: i for i, example_id in enumerate(rows.select_columns("example_id")["example_id"][:])}
        for rows in (train, val)
    }
    indices = {}
    for name in SETS:
        place = places[id(train if name in ("forget", "retain") else val)]
        missing = [example_id for example_id in manifest["example_ids"][name] if example_id not in place]
        if missing:
            raise ValueError(
                f"{len(missing)} rows of {name} are not in the given data, such as {missing[0]!r}. Read the "
                f"files that the manifest names: {', '.join(manifest['sources']) or 'none'}."
            )
        indices[name] = [place[example_id] for example_id in manifest["example_ids"][name]]
    kept = ("split", "seed", "deletion", "answer", "forget", "by_image", "val_rows")
    return Split({key: manifest[key] for key in kept}, indices, train, val)


def _hash(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _file_hash(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
