# SPDX-License-Identifier: Apache-2.0
"""Opens a store, or makes it with all processes of a run."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..processes import on_first_process
from .store import Layout, Store
from .writer import Writer


def build(
    folder: str | os.PathLike,
    layout: Layout,
    fill: Callable[[Writer], None],
    meta: Mapping[str, Any] | None = None,
) -> Store:
    """Opens the store in `folder`, or makes it with all processes of the run (those of `torch.distributed`).

    Args:
        folder (`str` or `os.PathLike`): its place, on a disk that all processes see; the first one's is taken.
        layout (`Layout`): what it holds; the same on every process.
        fill (`Callable[[Writer], None]`):
            Called on every process if the store is not there. Every row must be written by some process; where several
            write the same row, they must write the same values.
        meta (`Mapping`, *optional*): JSON values to keep beside it.

    Returns:
        `Store`: the same on every process.

    Raises:
        `DiskFullError`: if it does not fit; on every process where this shows before `fill`.
    """
    folder, writer = on_first_process(
        lambda: (Path(folder), None if Store.find(folder) else Writer.create(folder, layout, meta or {}))
    )
    if writer is not None:
        try:
            fill(writer)
            writer.close()
            if dist.is_initialized():
                dist.barrier()
            on_first_process(writer.commit)
        except BaseException:
            # When one process fails, the others cannot finish; the launcher ends them.
            writer.abort()
            raise
    return Store(folder)
