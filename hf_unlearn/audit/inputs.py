# SPDX-License-Identifier: Apache-2.0
"""What metrics take, checked at the door: one line says what was passed and what belongs there."""

import math
from numbers import Real
from typing import Any

import numpy as np


# A log-probability is at most 0 but for rounding.
ROUNDING = 1e-4


class Labelled(list):
    """Values that say by which definition they were made, so that no other name is put to them.

    Args:
        values (`Iterable`):
            One an item.
        definition (`Any`):
            What the function that reads them must know: a variant, a share of tokens.
    """

    def __init__(self, values, definition: Any):
        super().__init__(values)
        self.definition = definition

    def __getitem__(self, place):
        found = super().__getitem__(place)
        return Labelled(found, self.definition) if isinstance(place, slice) else found

    def __add__(self, other):
        if isinstance(other, Labelled) and other.definition != self.definition:
            raise ValueError(f"Values of {self.definition!r} and {other.definition!r} do not go into one list.")
        return Labelled(super().__add__(other), self.definition)

    def copy(self):
        return self[:]


def settled_definition(name: str, values: Any, given: Any, default: Any, alike=lambda one, other: one == other) -> Any:
    """The definition that values have: their own, else the given one, else the default.

    Raises:
        `ValueError`: if another is given than theirs.
    """
    own = values.definition if isinstance(values, Labelled) else None
    if own is None:
        return default if given is None else given
    if given is not None and not alike(own, given):
        raise ValueError(f"{name}={given!r}, and the values were made with {name}={own!r}. Leave it out.")
    return own if given is None else given


def listed(name: str, values: Any) -> list:
    """The values of a sequence, one an item.

    Raises:
        `ValueError`: for a text, a number, a mapping, or an array of more or fewer dimensions than one.
    """
    shape = getattr(values, "shape", None)
    is_list = hasattr(values, "__len__") and not isinstance(values, (str, bytes, dict, set))
    if not is_list if shape is None else len(shape) != 1:
        found = f"an array of shape {tuple(shape)}" if shape is not None else f"{type(values).__name__} {values!r:.60}"
        raise ValueError(f"{name} is {found}; give a list with one value an item.")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def numbers(name: str, values: Any) -> list[float | None]:
    """Numbers, one an item; `None` where an item has none, or one that is not finite.

    Raises:
        `ValueError`: for what [`listed`] refuses, and for an item that is no number.
    """
    found = listed(name, values)
    for i, value in enumerate(found):
        if value is not None and (isinstance(value, (bool, np.bool_)) or not isinstance(value, Real)):
            raise ValueError(f"{name}: item {i} is {value!r:.60}; give numbers, or None where there is none.")
    return [None if value is None or not math.isfinite(value) else float(value) for value in found]


def log_probabilities(name: str, values: Any) -> list[float | None]:
    """[`numbers`] that are natural log-probabilities, 0 at most.

    Raises:
        `ValueError`: also for a number above 0, such as a loss.
    """
    found = numbers(name, values)
    for i, value in enumerate(values):
        if value is not None and value > ROUNDING:
            raise ValueError(
                f"{name}: item {i} is {value:.6g}, and no log-probability is above 0. Give log-probabilities: of a "
                "loss its negative."
            )
    return [None if value is None else min(value, 0.0) for value in found]


def nested_log_probabilities(name: str, values: Any, n: int) -> list[list[float | None]]:
    """[`log_probabilities`] of several answers to each of `n` items.

    Raises:
        `ValueError`: also for another number of items.
    """
    rows = list(values) if isinstance(values, np.ndarray) and values.ndim == 2 else listed(name, values)
    same_length({"logps": n, name: len(rows)})
    return [[] if row is None else log_probabilities(f"{name}[{i}]", row) for i, row in enumerate(rows)]


def flags(name: str, values: Any) -> list[list[float]]:
    """Whether each token of each item is right: lists of true and false (or 1 and 0).

    Raises:
        `ValueError`: for anything else.
    """
    rows = list(values) if isinstance(values, np.ndarray) and values.ndim == 2 else listed(name, values)
    found = [listed(f"{name}[{i}]", row) for i, row in enumerate(rows)]
    for i, row in enumerate(found):
        wrong = [value for value in row if not isinstance(value, (Real, np.bool_)) or value not in (0, 1)]
        if wrong:
            raise ValueError(f"{name}[{i}] holds {wrong[0]!r:.60}; give true or false for each token.")
    return found


def texts(name: str, values: Any, gaps: bool = False) -> list[str | None]:
    """Texts, one an item; with `gaps`, `None` where there is none.

    Raises:
        `ValueError`: for one text in place of a list, and for an item that is no text.
    """
    if isinstance(values, str):
        raise ValueError(f"{name} is the one text {values!r:.60}; give a list of texts, one an item.")
    found = listed(name, values)
    for i, value in enumerate(found):
        if not isinstance(value, str) and not (gaps and value is None):
            raise ValueError(f"{name}: item {i} is {value!r:.60}; give a text{' (or None)' if gaps else ''}.")
    return found


def same_length(sizes: dict[str, int]) -> None:
    """Raises `ValueError` unless columns of the same items are of one length."""
    if len(set(sizes.values())) > 1:
        told = " and ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"Got {told}: give one of each an item, of the same items.")


def share(name: str, value: Any, below: bool = False) -> float:
    """A number above 0 and at most 1 (with `below`, less than 1).

    Raises:
        `ValueError`: for anything else.
    """
    good = isinstance(value, Real) and not isinstance(value, bool) and (0 < value < 1 if below else 0 < value <= 1)
    if not good:
        raise ValueError(f"{name}={value!r}; give the share, above 0 and {'below' if below else 'at most'} 1.")
    return float(value)


def score_array(name: str, values: Any) -> np.ndarray:
    """Scores in float64, `[n]`; NaN where an item has none that is finite.

    Raises:
        `ValueError`: for what [`numbers`] refuses, and for no scores at all.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "fiu":
        array = values.astype(np.float64)
    else:
        array = np.array([np.nan if value is None else value for value in numbers(name, values)], dtype=np.float64)
    if not len(array):
        raise ValueError(f"{name} is empty; give at least one score.")
    return np.where(np.isfinite(array), array, np.nan)


def finite_scores(name: str, values: Any) -> tuple[np.ndarray, int]:
    """The scores of [`score_array`] that are finite, and how many are not."""
    array = score_array(name, values)
    defined = np.isfinite(array)
    return array[defined], int((~defined).sum())


def matrix(name: str, values: Any) -> np.ndarray:
    """Rows `[n, d]` in float64, in which sums of squares of half precision do not overflow.

    Raises:
        `ValueError`: for anything but two dimensions.
    """
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has the shape {array.shape} and the type {array.dtype}; give numbers `[n, d]`.")
    return array.astype(np.float64)
