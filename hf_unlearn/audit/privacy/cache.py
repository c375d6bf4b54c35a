# SPDX-License-Identifier: Apache-2.0
"""Signals of (model, rows) on disk: an attack thought of later needs no forward pass."""

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_file
from .signals import Signals


logger = logging.getLogger(__name__)


def digest(value: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `.npz` file whole or not at all."""
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What [`save_arrays`] wrote; `None`, with a warning, for a file that is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if path.is_file():
            logger.warning("%s is damaged (%s) and is made anew.", path, error)
        return None


class SignalCache:
    """A folder of signals, one file for each model and set of rows.

    Args:
        folder (`str` or `Path`):
            Made when something is kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def get(self, key: str, compute: Callable[[], Signals]) -> Signals:
        """The signals kept under `key`, computed and kept if there are none."""
        path = self.folder / f"{key[:32]}.npz"
        arrays = load_arrays(path)
        if arrays is not None and "offsets" in arrays:
            logger.info("Scores are read from %s.", path)
            return Signals(arrays.pop("offsets"), arrays)
        signals = compute()
        save_arrays(path, {"offsets": signals.offsets, **signals.columns})
        return signals
