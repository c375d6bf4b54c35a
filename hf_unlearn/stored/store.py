# SPDX-License-Identifier: Apache-2.0
"""Predictions that do not change, on disk: rows of different lengths in flat files, found by integer index.

A store is a folder named after all that its values depend on (see `key.py`):

```
<key>/retain.hidden.bin       values of all rows, one after the other, as they are in memory
      retain.hidden.lengths   items (tokens, positions) of each row, int64
      manifest.json           written last: shapes, dtypes, the size of every file
```

`writer.py` fills it under another name and renames it when every row is there, so a folder that carries the name
is whole. Values come back bit by bit as they went in.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Rows:
    """One array: row `i` is a tensor `[lengths[i], *shape]`. A single tensor is one row.

    Args:
        lengths (`Sequence[int]`): items of each row; 0 is allowed.
        shape (`tuple[int, ...]`): shape of one item; `()` for a number.
        dtype (`torch.dtype`): type in which the values come and are kept.
    """

    lengths: Sequence[int]
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each row begins, and where the last one ends: int64 `[rows + 1]`, in items."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @property
    def item_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def checked(self, indices: Sequence[int] | Tensor) -> np.ndarray:
        """Row indices as an int64 array.

        Raises:
            `IndexError`: if they are no integers or lie outside.
        """
        found = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= len(self.lengths)):
            raise IndexError(f"Rows {found.tolist()[:8]}; give integers from 0 to {len(self.lengths) - 1}.")
        return found.astype(np.int64)


# Array to rows, as in {"forget.logps": Rows(...), "retain.hidden": Rows(...), "head.weight": Rows(...)}.
Layout = Mapping[str, Rows]


def describe(layout: Layout) -> dict[str, dict]:
    """What a store of this layout holds, as JSON can say it."""
    return {
        name: {
            "rows": len(rows.lengths),
            "items": int(rows.offsets[-1]),
            "shape": list(rows.shape),
            "dtype": str(rows.dtype).removeprefix("torch."),
        }
        for name, rows in layout.items()
    }


def file_sizes(layout: Layout) -> dict[str, int]:
    """The files of a store and their sizes in bytes, the manifest left out."""
    values = {f"{name}.bin": int(rows.offsets[-1]) * rows.item_bytes for name, rows in layout.items()}
    return values | {f"{name}.lengths": 8 * len(rows.lengths) for name, rows in layout.items()}


def required_bytes(layout: Layout) -> int:
    """Disk that a store of this layout takes, in bytes: whole blocks of 4 KiB, and 16 KiB for folder and manifest."""
    return sum(-(-size // 4096) * 4096 for size in file_sizes(layout).values()) + 16 * 1024


class Store:
    """A finished store, read through memory maps. Can be pickled, and shared with forked processes.

    Args:
        folder (`str` or `os.PathLike`): made by [`build`].

    Attributes:
        meta (`dict`): what its builder noted.

    Raises:
        `ValueError`: if there is no store, or a file is missing or not as long as the manifest says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"it has format {manifest['format']}, not {FORMAT}")
            for file, size in manifest["files"].items():
                if (found := (self.folder / file).stat().st_size) != size:
                    raise ValueError(f"{file} has {found} bytes instead of {size}")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.folder} holds no usable store: {error!r}.") from error
        self.meta: dict[str, Any] = manifest["meta"]
        self.layout: dict[str, Rows] = {}
        self._values: dict[str, Tensor] = {}
        for name, entry in manifest["arrays"].items():
            lengths = np.fromfile(self.folder / f"{name}.lengths", dtype=np.int64)
            shape, dtype = (entry["items"], *entry["shape"]), getattr(torch, entry["dtype"])
            flat = torch.from_file(str(self.folder / f"{name}.bin"), shared=False, size=prod(shape), dtype=dtype)
            self.layout[name] = Rows(lengths, shape[1:], dtype)
            self._values[name] = flat.view(shape)

    @classmethod
    def find(cls, folder: str | os.PathLike) -> "Store | None":
        """The store in `folder`, or `None` if it has to be made; what is wrong with a broken one goes to the log."""
        if not Path(folder).exists():
            return None
        try:
            return cls(folder)
        except ValueError as error:
            logger.warning("%s It is made again.", error)
            return None

    def read(self, name: str, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Copies rows into memory.

        Args:
            name (`str`): which array.
            indices (`Sequence[int]` or integer `Tensor`): rows, in any order.

        Returns:
            `tuple[Tensor, Tensor]`: the rows one after the other, `[items, *shape]`, and int64 offsets
            `[len(indices) + 1]`, where each begins and the last one ends.
        """
        values, rows = self._values[name], self.layout[name]
        indices = rows.checked(indices)
        begins, ends = rows.offsets[indices], rows.offsets[indices + 1]
        pieces = [values[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        return torch.cat([values[:0], *pieces]), torch.from_numpy(np.concatenate([[0], np.cumsum(ends - begins)]))

    def array(self, name: str) -> Tensor:
        """A whole array, `[items, *shape]`, as a map: each page is read from disk when it is first touched."""
        return self._values[name]

    def __reduce__(self):
        return type(self), (self.folder,)
