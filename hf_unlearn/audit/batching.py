# SPDX-License-Identifier: Apache-2.0
"""Running a model over many rows: longest first, in batches, shared out over processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def map_batches(
    compute: Callable[[list[int]], list[Any]],
    lengths: Sequence[int],
    batch_size: int,
    accelerator: Any = None,
    progress: bool = True,
    desc: str = "Rows",
) -> list[Any]:
    """Calls `compute` on batches of row numbers and returns one result a row, in the order of the rows.

    Rows of like length share a batch, so that little padding is computed; the longest go first, so that memory that
    does not suffice shows at once. With several processes each takes every n-th row, and all make equally many calls
    (the last ones on a repeated row if need be): under ZeRO-3 and FSDP every forward is a collective operation.

    Args:
        compute (`Callable`):
            Takes row numbers, returns as many picklable results.
        lengths (`Sequence[int]`):
            Tokens of each row.
        batch_size (`int`):
            Rows a call.
        accelerator (`accelerate.Accelerator`, *optional*):
            Its processes share the rows; each of them gets all results.
        progress (`bool`):
            Whether the main process shows a bar.
        desc (`str`):
            What the bar is called.

    Returns:
        `list`: one result a row.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not lengths:
        return []
    world = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    mine = _share(sorted(range(len(lengths)), key=lambda i: -lengths[i]), rank, world)
    results = []
    with tqdm(total=len(lengths), desc=desc, unit="row", disable=not (progress and rank == 0)) as bar:
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            results.extend(zip(batch, compute(batch), strict=True))
            bar.update(min(world * len(batch), len(lengths) - bar.n))
    if world > 1:
        from accelerate.utils import gather_object

        results = gather_object(results)
    by_row = dict(results)
    return [by_row[i] for i in range(len(lengths))]


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's inputs belong."""
    return next(model.parameters()).device


def _share(order: list[int], rank: int, world: int) -> list[int]:
    """One process's part, of equal size for all."""
    mine = order[rank::world]
    return mine + order[:1] * (-(-len(order) // world) - len(mine))
