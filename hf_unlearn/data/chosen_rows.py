# SPDX-License-Identifier: Apache-2.0
"""Rows that are chosen by the values of their columns."""

from collections.abc import Mapping
from typing import Any

from ..yaml_file import read_fields


EXAMPLE = "{person: Ada}"


def read_where(given: Any) -> dict[str, Any] | None:
    """Columns and their values, as a recipe or the command line gives them.

    Raises:
        `ValueError`: for anything else.
    """
    where = read_fields("forget_where", given, EXAMPLE)
    if where is not None and not (where and all(map(_is_choice, where.values()))):
        raise ValueError(f"forget_where={given!r}; give columns, each with a value or a list of some: `{EXAMPLE}`.")
    return where


def places_where(rows, where: Mapping[str, Any], what: str) -> list[int]:
    """Places of the rows that have one of the given values in every given column.

    Args:
        rows (`datasets.Dataset`): to choose from.
        where (`Mapping`): column to a value, or to a list of which one must be the row's.
        what (`str`): the rows, for messages.

    Raises:
        `ValueError`: for a column that the rows lack, or a value that none of them has.
    """
    places = list(range(len(rows)))
    for column, values in where.items():
        if column not in rows.column_names:
            raise ValueError(
                f"forget_where names the column {column!r}, and {what} have {', '.join(rows.column_names)}."
            )
        every, values = rows[column][:], values if isinstance(values, list) else [values]
        found = [every[i] for i in places]
        if absent := [value for value in values if value not in found]:
            there = list(dict.fromkeys(map(repr, found)))
            some = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            raise ValueError(f"forget_where: {what} have no {column}={absent[0]!r}. There are: {some}.")
        places = [i for i in places if every[i] in values]
        if not places:
            raise ValueError(f"forget_where={dict(where)}: {what} have each of these values, and no row has all.")
    return places


def rows_where(rows, where: Mapping[str, Any], what: str):
    """The rows themselves; as [`places_where`]."""
    return rows.select(places_where(rows, where, what))


def _is_choice(value: Any) -> bool:
    options = value if isinstance(value, list) else [value]
    return bool(options) and all(isinstance(option, (str, int, float, bool)) for option in options)
