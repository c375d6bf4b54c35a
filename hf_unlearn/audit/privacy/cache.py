# SPDX-License-Identifier: Apache-2.0
"""Signals of (model, rows) on disk: an attack thought of later needs no forward pass."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .signals import Signals


logger = logging.getLogger(__name__)


def digest(value: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `.npz` file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


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
        if path.is_file():
            logger.info("Scores are read from %s.", path)
            with np.load(path, allow_pickle=False) as arrays:
                return Signals(arrays["offsets"], {name: arrays[name] for name in arrays.files if name != "offsets"})
        signals = compute()
        save_arrays(path, {"offsets": signals.offsets, **signals.columns})
        return signals
