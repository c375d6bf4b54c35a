# SPDX-License-Identifier: Apache-2.0
"""Rows from a file, a folder or the Hub."""

from collections.abc import Iterable
from pathlib import Path

from datasets import concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from .formats import chunk_documents
from .tables import check_strings


_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# Columns that hold text; `messages` may stand in some of them, and others may have no value where a row is of another
# type.
QUESTIONS = ("question", "answer")
TEXTS = ("text", "prompt", "completion", "chosen", "rejected")


def load_rows(
    name: str,
    config: str | None = None,
    split: str = "train",
    tokenizer=None,
    max_length: int | None = None,
    chunk_text: bool = False,
):
    """Loads one set of rows.

    Args:
        name (`str`):
            A `.json`, `.jsonl`, `.csv` or `.parquet` file; a `.txt` file or a folder of them, one document a file, cut
            into rows of `max_length` tokens; a folder written by `save_to_disk`; else a Hub id.
        config, split (`str`):
            For the Hub; `split` also for a folder with several splits.
        tokenizer, max_length:
            For text files and `chunk_text`.
        chunk_text (`bool`):
            Cut rows of `text` as text files are cut, a row a document; a column `topic` stays.

    Returns:
        `datasets.Dataset`

    Raises:
        `ValueError`: if there is nothing at that name, or nothing that can be read.
    """
    path = Path(name).expanduser()
    if texts := _text_files(path):
        return _chunks(texts, tokenizer, max_length)
    if path.is_file() and path.suffix not in _BUILDERS:
        raise ValueError(f"{name!r} is no rows file. Allowed endings: .txt, {', '.join(_BUILDERS)}.")
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not path.exists() and (looks_local or path.suffix in (".txt", *_BUILDERS)):
        raise ValueError(f"No file or folder at {name!r}. Give an existing path or a Hub id such as 'owner/name'.")
    for file in _local_files(path):
        _read_utf8(file)
    try:
        rows = _load(name, path, config, split)
    except (OSError, ValueError, DatasetsError) as error:
        # Libraries say in many ways and lines that a file is empty or broken, or that the Hub has no such set.
        cause = error.__cause__ or error
        told = " ".join(str(cause).split())
        raise ValueError(f"The rows of {name!r} cannot be read, or there are none: {told}") from error
    _check_texts(rows, name)
    return _chunked_rows(rows, name, tokenizer, max_length) if chunk_text else rows


def _load(name: str, path: Path, config: str | None, split: str):
    if path.is_file():
        if path.stat().st_size == 0:
            raise ValueError("the file is empty.")
        # What a table is guessed to hold (numbers, dates, "NA" for nothing) is no guess where a column holds text.
        options = {"keep_default_na": False, "na_values": [""]} if path.suffix == ".csv" else {}
        if options:
            options["converters"] = dict.fromkeys((*TEXTS, *QUESTIONS), _cell)
        return load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", **options)
    if (path / "dataset_dict.json").is_file():
        splits = load_from_disk(str(path))
        if split not in splits:
            raise ValueError(f"there are the splits {', '.join(splits)}, and no {split!r}.")
        return splits[split]
    if (path / "dataset_info.json").is_file():
        return load_from_disk(str(path))
    return load_dataset(str(path) if path.is_dir() else name, config, split=split)


def _cell(text: str) -> str | None:
    return text or None


def _local_files(path: Path) -> list[Path]:
    """Files at a path that hold rows as text."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    return [file for file in files if file.suffix in (".json", ".jsonl", ".csv")]


def _read_utf8(file: Path) -> str:
    """The text of a file.

    Raises:
        `ValueError`: with the place of the first byte that is not UTF-8.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(file)!r} is not in UTF-8: byte {content[error.start]:#x} at offset {error.start} (line {line}). "
            "Save it as UTF-8, for instance by `iconv -f LATIN1 -t UTF-8` (or `-f UTF-16`)."
        ) from None


def _check_texts(rows, name: str) -> None:
    """Refuses rows whose text is none, with the file and the row."""
    where = repr(name)
    table = [c for c in (*TEXTS, *QUESTIONS) if c in rows.column_names and len(rows) == 1]
    if any(isinstance(rows[0][column], dict) or _is_column(rows[0][column]) for column in table):
        raise ValueError(
            f"{where} is an object of columns. Give rows: a list of objects, or one object a line (of a pandas table "
            "`to_json(path, orient='records', lines=True)`)."
        )
    if set(QUESTIONS) <= set(rows.column_names):
        check_strings(rows, QUESTIONS, where)
    check_strings(rows, ("text",), where, also=(type(None),))
    check_strings(rows, [c for c in TEXTS if c != "text"], where, also=(type(None), list))


def _is_column(value) -> bool:
    return isinstance(value, list) and bool(value) and not isinstance(value[0], dict)


def _text_files(path: Path) -> list[Path]:
    """The documents at a path; a folder that holds rows files too is taken for those."""
    if path.is_file() and path.suffix == ".txt":
        return [path]
    if not path.is_dir() or any(file.suffix in _BUILDERS for file in path.iterdir()):
        return []
    return sorted(path.glob("*.txt"))


def _chunks(files: list[Path], tokenizer, max_length: int | None):
    return _cut((_read_utf8(file) for file in files), tokenizer, max_length)


def _chunked_rows(rows, name: str, tokenizer, max_length: int | None):
    if "text" not in rows.column_names:
        raise ValueError(f"chunk_text cuts `text`, and the rows of {name!r} have {rows.column_names}. Leave it out.")
    check_strings(rows, ("text",), repr(name))
    if "topic" not in rows.column_names:
        return _cut(rows["text"], tokenizer, max_length)
    parts = []
    for topic in dict.fromkeys(rows["topic"]):
        texts = (row["text"] for row in rows if row["topic"] == topic)
        cut = _cut(texts, tokenizer, max_length)
        parts.append(cut.add_column("topic", [topic] * len(cut)))
    return concatenate_datasets(parts)


def _cut(texts: Iterable[str], tokenizer, max_length: int | None):
    if max_length is None:
        raise ValueError("Texts are cut into rows of `max_length` tokens; give `max_length`.")
    return chunk_documents(texts, tokenizer, max_length)
