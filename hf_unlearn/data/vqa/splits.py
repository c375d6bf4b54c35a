# SPDX-License-Identifier: Apache-2.0
"""Subsets of a visual question answering set, and what is deleted from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

# Training rows of each split; `None` is all of them.
SPLITS = {"5k": 5_000, "20k": 20_000, "80k": 80_000, "full": None}
SETS = ("forget", "retain", "test", "holdout")


@dataclass(frozen=True)
class Split:
    """
    Which rows are forgotten, retained and measured on.

    Args:
        settings (`dict`):
            `split`, `seed`, `deletion`, `answer`, `forget`, `by_image`, `val_rows` as they were asked for.
        indices (`dict[str, list[int]]`):
            Rows of `forget` and `retain` in `train`, of `test` and `holdout` in `val`, in ascending order.
        train (`datasets.Dataset`), val (`datasets.Dataset`):
            Where they come from.
    """

    settings: dict
    indices: dict[str, list[int]] = field(repr=False)
    train: Dataset = field(repr=False)
    val: Dataset = field(repr=False)

    def dataset(self, name: str) -> Dataset:
        """
        One of the sets.

        Args:
            name (`str`):
                `"forget"`, `"retain"`, `"test"` (rows of the retain distribution that were never trained) or
                `"holdout"` (rows of the forget distribution that were never trained: the non-members).
        """
        if name not in SETS:
            raise ValueError(f"Unknown set {name!r} of a split, choose one of {', '.join(SETS)}.")
        return (self.train if name in ("forget", "retain") else self.val).select(self.indices[name])

    def example_ids(self, name: str) -> list[str]:
        """`example_id`s of one of the sets."""
        return _column(self.dataset(name), "example_id")


def make_split(
    train: Dataset,
    val: Dataset,
    split: str = "5k",
    seed: int = 0,
    *,
    forget: float | None = None,
    answer: str | None = None,
    by_image: bool = True,
    val_rows: int | None = None,
) -> Split:
    """
    Draw a split and a deletion by seed.

    The same seed gives the same rows on every machine, and a smaller split is part of every larger one. Give `forget`
    to delete rows at random, or `answer` to delete everything that is answered so.

    Args:
        train (`datasets.Dataset`):
            Rows with `example_id`, `image_id` and `answer`, such as [`read_vqa`] gives.
        val (`datasets.Dataset`):
            Rows no model is trained on.
        split (`str`, *optional*, defaults to `"5k"`):
            How many rows of `train` are used: `"5k"`, `"20k"`, `"80k"` or `"full"`.
        seed (`int`, *optional*, defaults to 0):
            Of all draws.
        forget (`float`, *optional*):
            Sample deletion: how many rows, or which share of the split's rows if below 1.
        answer (`str`, *optional*):
            Whole-answer deletion: all rows of the split whose majority answer this is. `holdout` then are the rows of
            `val` with this answer, `test` the others.
        by_image (`bool`, *optional*, defaults to `True`):
            Whether sample deletion keeps the rows of one picture together, on one side or the other. There are then at
            least as many rows as asked for, up to the last picture's.
        val_rows (`int`, *optional*):
            How many rows of `val` are used, before they are parted into `test` and `holdout` (in halves with sample
            deletion). A quarter of the split's training rows by default, and all for `"full"`.

    Returns:
        [`Split`]

    Raises:
        `ValueError`: if `train` has too few rows, rows occur in both, or a set would be empty.
    """
    _check_choice(split, seed, forget, answer)
    _check_rows(train, val)
    rows, size = len(train), SPLITS[split] or len(train)
    if rows < size:
        raise ValueError(f"The split {split!r} takes {size} rows and `train` has {rows}. Give a smaller split.")
    if val_rows is None:
        val_rows = len(val) if SPLITS[split] is None else min(size // 4, len(val))
    if not 1 <= val_rows <= len(val):
        raise ValueError(f"val_rows must lie between 1 and the {len(val)} rows of `val`, got {val_rows}.")

    used = np.sort(np.random.default_rng([seed, 0]).permutation(rows)[:size])
    measured = np.sort(np.random.default_rng([seed, 1]).permutation(len(val))[:val_rows])
    if answer is None:
        number = round(forget * size) if isinstance(forget, float) else forget
        forgotten = _draw(train, used, number, np.random.default_rng([seed, 2]), by_image)
        held_out = _draw(val, measured, val_rows // 2, np.random.default_rng([seed, 3]), by_image)
    else:
        forgotten = _answered(train, used, answer)
        held_out = _answered(val, measured, answer)
    indices = {
        "forget": used[forgotten].tolist(),
        "retain": used[~forgotten].tolist(),
        "test": measured[~held_out].tolist(),
        "holdout": measured[held_out].tolist(),
    }
    _check_sets(indices, train, used, answer)
    asked = {"split": split, "seed": seed, "deletion": "sample" if answer is None else "answer", "answer": answer}
    asked |= {"forget": forget, "by_image": by_image if answer is None else None, "val_rows": val_rows}
    return Split(asked, indices, train, val)


def _draw(rows: Dataset, used: np.ndarray, number: int, rng: np.random.Generator, by_image: bool) -> np.ndarray:
    """A mask over `used` that marks `number` rows at random, whole pictures if `by_image`."""
    if not by_image:
        marked = np.zeros(len(used), dtype=bool)
        marked[rng.permutation(len(used))[:number]] = True
        return marked
    # Pictures are numbered in the order of the rows, not by their names: the draw does not depend on how they sort
    images = np.array(_column(rows, "image_id"))[used]
    _, first, group = np.unique(images, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[group]
    drawn = rng.permutation(len(first))
    enough = np.searchsorted(np.cumsum(np.bincount(order)[drawn]), number) + 1
    return np.isin(order, drawn[: enough if number else 0])


def _answered(rows: Dataset, used: np.ndarray, answer: str) -> np.ndarray:
    return np.array(_column(rows, "answer"), dtype=object)[used] == answer


def _column(rows: Dataset, name: str) -> list[str]:
    # Without the pictures, and in one piece
    return rows.select_columns(name)[name][:]


def _check_choice(split: str, seed: int, forget: float | None, answer: str | None) -> None:
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}, choose one of {', '.join(SPLITS)}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}.")
    if (forget is None) == (answer is None):
        raise ValueError("Give either `forget` (rows at random) or `answer` (all rows with that answer), not both.")
    is_number = isinstance(forget, int) and not isinstance(forget, bool) and forget >= 1
    if forget is not None and not is_number and not 0 < forget < 1:
        raise ValueError(f"forget must be a number of rows (at least 1) or a share below 1, got {forget!r}.")


def _check_rows(train: Dataset, val: Dataset) -> None:
    for name, rows in (("train", train), ("val", val)):
        if lacking := [c for c in ("example_id", "image_id", "answer") if c not in rows.column_names]:
            raise ValueError(f"`{name}` has no {', '.join(lacking)}, only {rows.column_names}.")
        repeated = len(rows) - len(set(_column(rows, "example_id")))
        if repeated:
            raise ValueError(f"`{name}` has {repeated} repeated example_ids; each must occur once.")
    # The same picture on both sides would make a non-member of what the model has seen
    for column in ("example_id", "image_id"):
        if common := set(_column(train, column)) & set(_column(val, column)):
            raise ValueError(
                f"{len(common)} {column}s are in both `train` and `val`, such as {min(common)!r}. `val` must be "
                "rows and pictures that no model is trained on."
            )


def _check_sets(indices: dict[str, list[int]], train: Dataset, used: np.ndarray, answer: str | None) -> None:
    empty = [name for name in SETS if not indices[name]]
    if empty and answer is not None:
        given = np.array(_column(train, "answer"), dtype=object)[used]
        common = ", ".join(f"{name!r} ({n})" for name, n in Counter(given.tolist()).most_common(5))
        raise ValueError(
            f"Deleting the answer {answer!r} leaves no rows for {', '.join(empty)}. The most frequent answers of the "
            f"split are {common}."
        )
    if empty:
        raise ValueError(f"There are no rows for {', '.join(empty)}. Change `forget`, or raise `val_rows`.")
