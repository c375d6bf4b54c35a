# SPDX-License-Identifier: Apache-2.0
"""The best of several attacks, row by row: the maximum rises by chance in a model that never knew, too, so it is
taken in every model."""

from collections.abc import Collection, Sequence
from typing import Any

from .measured import Measured, RowScores


MAXIMUM = "max"
# In `Measured.more`: the family takes part in the maximum.
JOINS = "joins"


def joining(measured: Sequence[Measured]) -> list[str]:
    """Families that take part in the maximum."""
    return list(dict.fromkeys(one.family for one in measured if one.more.get(JOINS)))


def row_maximum(
    result: Any, families: Collection[str], scores: Sequence[str], keys: Sequence[Collection[int]] | None, **more: Any
) -> Measured:
    """The best of these families, and of the model as it is, in each row of one model.

    Args:
        result ([`Robustness`]): of one model.
        families (`Collection[str]`): of `result.measured`.
        scores (`Sequence[str]`): of which there is a maximum each.
        keys: key tokens of the forget rows; see [`RowScores.values`].
    """
    found = Measured("the best of each row", RowScores([]), MAXIMUM, more=more)
    for part in ("tested", "holdout"):
        before = getattr(result.before, part)
        if before is None:
            continue
        known = keys if part == "tested" else None
        among = [getattr(one, part) for one in result.measured if one.family in families]
        among = [before, *(one for one in among if one is not None)]
        best = {score: _best(before.rows, among, score, known) for score in scores}
        setattr(found, part, RowScores(list(before.rows), scores=best))
    return found


def _best(rows: Sequence[int], among: Sequence[RowScores], score: str, keys) -> list[float | None]:
    found: dict[int, float] = {}
    for one in among:
        for row, value in zip(one.rows, one.values(score, keys), strict=True):
            if value is not None:
                found[row] = max(value, found.get(row, value))
    return [found.get(row) for row in rows]
