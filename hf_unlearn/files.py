# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all: written beside their place, then renamed to it. A process may be killed at
any moment, and what it leaves half written would be read for ever after."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

PART = ".part"


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A place to write to, beside `path`; it takes the place of `path` where the block ends without an error.

    Args:
        path (`str` or `Path`): the file; its folder is made if absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """One process at a time is in the block with this path; the others wait. A killed one does not keep it.

    Args:
        path (`str` or `Path`): what is written in the block; the lock is a file beside it.
    """
    # Imported late: most commands lock nothing.
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Another process is writing %s. Waiting for it.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text in UTF-8; returns its path."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    return Path(path)


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> Path:
    """Writes JSON; `options` are those of `json.dumps`. Nothing is written where `content` is none."""
    return write_text(path, json.dumps(content, **options))


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows under their columns; what is `None` or absent is an empty cell."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def read_json(path: str | os.PathLike, remedy: str = "") -> Any:
    """What a JSON file holds.

    Args:
        path (`str` or `Path`): the file.
        remedy (`str`): what to do about a damaged one.

    Raises:
        `ValueError`: in one line, where that is no JSON, as what a killed process of an older version left.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}).{f' {remedy}' if remedy else ''}") from error
