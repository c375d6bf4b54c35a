# SPDX-License-Identifier: Apache-2.0
"""Rows as users hold them (lists, data frames, datasets) as one map-style dataset; or one error that names the row."""

import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(name: str, number: int):
    """Puts the set and the row in front of what is wrong with a row."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {number} of the {name} set: {error}") from error


def as_dataset(dataset, name: str):
    """The rows as a map-style `datasets.Dataset`, or one clear error that names the set."""
    from datasets import Dataset, IterableDataset

    if dataset is None:
        raise ValueError(f"No {name} rows were given. Pass `{name}_dataset`.")
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`{name}_dataset` is streamed, but pairing rows needs random access. Load it without `streaming=True`."
        )
    if _is_frame(dataset):
        dataset = _of_frame(dataset, name)
    counted = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, (Mapping, str)) or not counted:
        splits = f" with {sorted(dataset)}" if isinstance(dataset, Mapping) else ""
        raise ValueError(
            f"`{name}_dataset` is a {type(dataset).__name__}{splits}. Pass a `datasets.Dataset` (one split), a list "
            "of dicts or a pandas `DataFrame`."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty. Give at least one row.")
    if isinstance(dataset, Dataset):
        # Tensors and arrays are a matter of training; a transform (`custom`) is the user's own.
        return dataset if dataset.format["type"] in (None, "custom") else dataset.with_format(None)
    rows = [dataset[i] for i in range(len(dataset))]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {number} of `{name}_dataset` is a {type(row).__name__}. Pass rows that are dicts, such as "
                "{'text': ...}."
            )
    return _of_list(rows, name)


# Up to here rows are encoded in less time than it takes to hash a tokenizer and look for them.
SMALL = 1000


def mapped(dataset, function, **kwargs):
    """`dataset.map`, which looks for an earlier result only where that is worth it.

    To find one in the dataset's cache files, `map` hashes the function and all that it refers to, a tokenizer as a
    rule. Rows that are in memory have no such files, and a small set is encoded sooner. Files of the Hub stay: they
    tell the commit.
    """
    from datasets.fingerprint import generate_random_fingerprint

    if not dataset.cache_files or (len(dataset) <= SMALL and hub_commit(dataset) is None):
        kwargs |= {"new_fingerprint": generate_random_fingerprint(), "keep_in_memory": True}
    return dataset.map(function, **kwargs)


def hub_commit(dataset) -> str | None:
    """The commit that rows from the Hub are of: they lie in a cache folder named after it."""
    parts = [part for file in dataset.cache_files for part in Path(file["filename"]).parts]
    return next((part for part in parts if re.fullmatch("[0-9a-f]{40}", part)), None)


def _is_frame(dataset) -> bool:
    return hasattr(dataset, "iloc") and hasattr(dataset, "to_dict")


def _of_frame(frame, name: str):
    from datasets import Dataset

    if not all(isinstance(column, str) for column in frame.columns):
        raise ValueError(f"The columns of `{name}_dataset` are {list(frame.columns)!r:.80}. Give them names.")
    try:
        return Dataset.from_pandas(frame, preserve_index=False)
    except (ValueError, TypeError):
        # A column of mixed types, which is for the check of rows to refuse.
        return frame.to_dict("records")


def _of_list(rows: list[Mapping], name: str):
    from datasets import Dataset

    # A table would have the first row's columns alone.
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [{column: row.get(column) for column in columns} for row in rows]
    for mixed in (None, "use_json"):
        try:
            return Dataset.from_list(rows, on_mixed_types=mixed)
        except UnicodeEncodeError:
            check_rows_of_list(rows, name)
            raise
        except (ValueError, TypeError, OverflowError) as error:
            failed = " ".join(str(error).split())
    raise ValueError(f"The {name} rows are no table: {failed}. Give every column values of one kind.")


def check_rows_of_list(rows: Iterable[Mapping], name: str) -> None:
    """Names the row whose text no table takes."""
    for number, row in enumerate(rows):
        with naming(name, number):
            for column, value in row.items():
                _check_all_text(value, f"`{column}`")


def _check_all_text(value: Any, where: str) -> None:
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, Mapping):
        for item in value.values():
            _check_all_text(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_all_text(item, where)


def check_text(value: Any, where: str) -> str:
    """A text, as given.

    Raises:
        `ValueError`: for another type, and for half of a surrogate pair, which no tokenizer takes.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where} is {told(value)}; give text{_how(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} has half of a surrogate pair at character {error.start} ({value[error.start]!r}), which is no "
            "text. Repair it where it was cut."
        ) from None
    return value


def told(value: Any) -> str:
    """A value and its type, shortly."""
    if value is None:
        return "None (no value)"
    return f"{str(value)[:60]!r} ({type(value).__name__})"


def _how(value: Any) -> str:
    return ", in quotes or by a conversion of the column" if isinstance(value, (int, float)) else ""


def check_strings(rows, columns: Iterable[str], where: str, also: tuple[type, ...] = ()) -> None:
    """Refuses a set in whose columns a value is no text.

    Args:
        rows (`datasets.Dataset`): the set.
        columns (`Iterable[str]`): those that have to be text, where they are there.
        where (`str`): names the set.
        also (`tuple[type, ...]`): what else a value may be.
    """
    for column in columns:
        if column not in rows.column_names:
            continue
        if type(None) in also and getattr(rows.features[column], "dtype", None) in ("string", "large_string"):
            continue
        for number, value in enumerate(rows[column]):
            if not isinstance(value, (str, *also)):
                raise ValueError(f"Row {number} of {where}: `{column}` is {told(value)}; give text{_how(value)}.")
