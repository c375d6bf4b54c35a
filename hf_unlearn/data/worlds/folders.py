# SPDX-License-Identifier: Apache-2.0
"""A folder that exists only when it is complete, however many processes want it and whenever they are killed."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...files import one_at_a_time, write_json


logger = logging.getLogger(__name__)

METADATA = "world.json"


def is_complete(path: Path) -> bool:
    """Whether `path` holds its metadata and every file listed there in its full size."""
    try:
        files = json.loads((path / METADATA).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def cached_folder(path: Path, build: Callable[[Path], dict]) -> bool:
    """
    Make sure that `path` is a complete folder.

    The folder is built under another name and renamed when all of it is written, by one process at a time; the others
    wait and then use it. A folder at `path` that lacks files is replaced.

    Args:
        path (`Path`):
            The folder.
        build (`Callable`):
            Fills the folder it is given and returns the metadata to write beside the files.

    Returns:
        `bool`: whether it had to be built here.
    """
    if is_complete(path):
        return False
    with one_at_a_time(path):
        if is_complete(path):
            return False
        if path.exists():
            logger.warning("%s is incomplete and is built anew.", path)
            shutil.rmtree(path)
        # Only the holder of the lock builds, so whatever has this prefix belongs to a process that was killed
        prefix = f"{path.name}.building-"
        for abandoned in path.parent.glob(f"{prefix}*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as workspace:
            # One level down, because a temporary folder is readable by its owner only
            folder = Path(workspace) / path.name
            folder.mkdir()
            metadata = build(folder)
            files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
            write_json(folder / METADATA, {**metadata, "files": files}, indent=1)
            folder.rename(path)
    return True
