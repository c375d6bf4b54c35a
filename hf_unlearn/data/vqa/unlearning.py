# SPDX-License-Identifier: Apache-2.0
"""One set of rows, parted by index into what is forgotten and what is retained."""

from __future__ import annotations

import logging
import operator
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..sources import load_rows
from .images import check_images


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class UnlearningDataset:
    """
    Forget and retain rows of one data set.

    ```python
    data = UnlearningDataset("vqa/train", forget_indices=[3, 14], retain_indices=range(100, 5000))
    trainer = MUAlignTrainer(..., forget_dataset=data.forget, retain_dataset=data.retain)
    ```

    Args:
        data_path (`str` or `Path`):
            A folder written by `save_to_disk`; a `.jsonl` file whose `image` is a path, from the file's folder on; or
            a Hub id.
        forget_indices (`Sequence[int]`), retain_indices (`Sequence[int]`):
            Rows, counted from 0. Each in one of them at most.
        transform (`Callable`, *optional*):
            From a row (`dict`) to a row, applied whenever one is read.
        require_coverage (`bool`, *optional*, defaults to `False`):
            Whether every row must be in one of them. Otherwise rows in neither are counted in `uncovered` and logged.

    Attributes:
        forget (`datasets.Dataset`), retain (`datasets.Dataset`):
            The rows, in the order of the indices.
        uncovered (`int`):
            Rows in neither.

    Raises:
        `ValueError`: for indices out of range, repeated or in both; for an empty side; for missing pictures.
    """

    def __init__(
        self,
        data_path: str | os.PathLike,
        forget_indices: Sequence[int],
        retain_indices: Sequence[int],
        transform: Callable[[dict], dict] | None = None,
        *,
        require_coverage: bool = False,
    ):
        rows = _load(data_path)
        sides = {"forget_indices": forget_indices, "retain_indices": retain_indices}
        sides = {name: _checked(name, indices, len(rows)) for name, indices in sides.items()}
        forget, retain = sides.values()
        if common := sorted(set(forget) & set(retain)):
            raise ValueError(f"{len(common)} rows are in both sets, {_first(common)}. Each belongs to one.")
        self.uncovered = len(rows) - len(forget) - len(retain)
        if self.uncovered and require_coverage:
            neither = sorted(set(range(len(rows))) - set(forget) - set(retain))
            raise ValueError(
                f"{len(neither)} of {len(rows)} rows are in neither set, {_first(neither)}. Add them to "
                "`retain_indices`, or leave out `require_coverage`."
            )
        if self.uncovered:
            logger.warning("%d of the %d rows of %s are in neither set.", self.uncovered, len(rows), data_path)
        if transform is not None:
            rows = rows.with_transform(lambda batch: _by_row(batch, transform))
        self.forget, self.retain = rows.select(forget), rows.select(retain)


def _load(data_path: str | os.PathLike) -> Dataset:
    rows = load_rows(os.fspath(data_path))
    feature = rows.features.get("image")
    if getattr(feature, "dtype", None) != "string":
        return rows
    from datasets import Image

    folder = Path(data_path).parent if Path(data_path).is_file() else Path()
    paths = [str(folder / name) for name in rows["image"][:]]
    check_images(paths, str(data_path))
    return rows.remove_columns("image").add_column("image", paths).cast_column("image", Image())


def _checked(name: str, indices: Sequence[int], rows: int) -> list[int]:
    try:
        found = [operator.index(index) for index in indices]
    except TypeError:
        raise ValueError(f"{name}: {indices!r} are no row numbers; give a sequence of integers.") from None
    if not found:
        raise ValueError(f"{name} is empty. Give at least one row.")
    if outside := [index for index in found if not 0 <= index < rows]:
        raise ValueError(f"{len(outside)} of the {name} are no rows of 0 to {rows - 1}, {_first(outside)}.")
    if repeated := [index for index, count in Counter(found).items() if count > 1]:
        raise ValueError(f"{len(repeated)} rows are more than once in {name}, {_first(repeated)}.")
    return found


def _first(indices: Sequence[int]) -> str:
    return f"such as {', '.join(map(str, indices[:3]))}"


def _by_row(batch: dict[str, list], transform: Callable[[dict], dict]) -> dict[str, list]:
    names = list(batch)
    rows = [transform(dict(zip(names, values, strict=True))) for values in zip(*batch.values(), strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}
