# SPDX-License-Identifier: Apache-2.0
"""Refusals, each with one clear error: rows that make every number of an evaluation meaningless."""

from collections.abc import Mapping, Sequence
from typing import Any

from .subjects import Subject


# Below it no interval says anything, and attacks that learn have nothing to learn from.
MIN_ROWS = 10


def as_rows(data: Any, name: str) -> list[dict[str, Any]]:
    """The rows of a set, as a list; of pictures as they are, so that none is read before it is needed.

    Raises:
        `ValueError`: if the set is missing, streamed, or too small.
    """
    if data is None:
        hint = (
            "They are rows like the forget set's that no model was trained on; retain rows are members and do not "
            "stand in for them."
            if name == "nonmember_data"
            else "Give a `datasets.Dataset` or a list of dicts."
        )
        raise ValueError(f"No {name} was given. {hint}")
    if not hasattr(data, "__len__") or isinstance(data, (str, dict)):
        raise ValueError(f"{name} is a {type(data).__name__}. Give a `datasets.Dataset` or a list of dicts.")
    if len(data) < MIN_ROWS:
        raise ValueError(f"{name} has {len(data)} rows; an evaluation needs {MIN_ROWS} at least.")
    return data if "image" in getattr(data, "column_names", ()) else list(data)


def check_disjoint(subject: Subject, members: dict[str, list[dict]], nonmembers: list[dict]) -> None:
    """Refuses members among the non-members, and a non-member given twice (it would stand on both sides of the split).

    Raises:
        `ValueError`: with the count and the first of them.
    """
    ids = subject.row_ids(nonmembers)
    for name, rows in members.items():
        known = set(subject.row_ids(rows))
        shared = [i for i, row in enumerate(ids) if row in known]
        if shared:
            raise ValueError(
                f"{len(shared)} of {len(ids)} rows of nonmember_data are {name} rows too, which the model was trained "
                f"on; the first is row {shared[0]}: {_shown(nonmembers[shared[0]])}. Give rows that no model was "
                "trained on."
            )
    # Data sets ask the same of a picture twice and get other answers: two rows.
    twins = _repeated(subject.row_keys(nonmembers))
    if twins:
        raise ValueError(
            f"{len(twins)} rows of nonmember_data stand there more than once; the first is row {twins[0]}: "
            f"{_shown(nonmembers[twins[0]])}. Leave the repetitions out: a row must not both set and test a threshold."
        )


def check_heads(subject: Subject, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuses sets whose labels ask for different heads: an attack would tell the heads apart.

    Raises:
        `ValueError`: with the sets of either kind.
    """
    heads = {name: subject.head_of(rows) for name, rows in sets.items()}
    if len(set(heads.values())) > 1:
        softmax, sigmoid = ([name for name in heads if heads[name] == head] for head in ("softmax", "sigmoid"))
        raise ValueError(
            f"`labels` are integer classes in {', '.join(softmax)} and targets [C] in {', '.join(sigmoid)}, and their "
            "scores cannot be compared: give one kind in all sets, or name the `head` of a `Classifier`."
        )


def _repeated(ids: Sequence[str]) -> list[int]:
    seen: set[str] = set()
    return [i for i, row in enumerate(ids) if row in seen or seen.add(row)]


def _shown(row: dict[str, Any]) -> str:
    text = str(row)
    return text if len(text) <= 200 else f"{text[:200]}..."
