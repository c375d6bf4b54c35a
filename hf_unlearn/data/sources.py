# SPDX-License-Identifier: Apache-2.0
"""Rows from a file, a folder or the Hub."""

from pathlib import Path

from .formats import chunk_documents


_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(name: str, config: str | None = None, split: str = "train", tokenizer=None, max_length=None):
    """Loads one set of rows.

    Args:
        name (`str`):
            A `.json`, `.jsonl`, `.csv` or `.parquet` file; a `.txt` file or a folder of them, one document a file, cut
            into rows of `max_length` tokens; a folder written by `save_to_disk`; else a Hub id.
        config, split (`str`):
            For the Hub.
        tokenizer, max_length:
            For text files.

    Returns:
        `datasets.Dataset`

    Raises:
        `ValueError`: if a path is missing or of a kind that is not read.
    """
    from datasets import load_dataset, load_from_disk

    path = Path(name).expanduser()
    texts = _text_files(path)
    if texts:
        return chunk_documents((file.read_text(encoding="utf-8") for file in texts), tokenizer, max_length)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"{name!r} is no rows file. Allowed endings: .txt, {', '.join(_BUILDERS)}.")
        return load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
    if (path / "dataset_info.json").is_file():
        return load_from_disk(str(path))
    if path.is_dir():
        return load_dataset(str(path), config, split=split)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix:
        raise ValueError(f"No file or folder at {name!r}. Give an existing path or a Hub id such as 'owner/name'.")
    return load_dataset(name, config, split=split)


def _text_files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".txt":
        return [path]
    return sorted(path.glob("*.txt")) if path.is_dir() else []
