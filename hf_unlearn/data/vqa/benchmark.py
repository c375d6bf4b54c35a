# SPDX-License-Identifier: Apache-2.0
"""VQA-v2 as a benchmark: a folder of its files, a split, and what is deleted of it."""

from pathlib import Path

from .reader import read_vqa
from .splits import SPLITS, Split, make_split


FILES = ("v2_OpenEnded_mscoco_{part}2014_questions.json", "v2_mscoco_{part}2014_annotations.json", "{part}2014")
DEFAULT = "20k/share=0.05"


def load_vqa_v2(folder: str | None, forget_split: str | None) -> Split:
    """A split of VQA-v2 and its deletion, drawn with seed 0.

    Args:
        folder (`str`):
            Holds the published files under their names, and the pictures in `train2014` and `val2014`.
        forget_split (`str`, *optional*):
            `5k`, `20k`, `80k` or `full`; then what is deleted, as in `20k/share=0.05` (of the rows at random, whole
            pictures; the default), `20k/rows=500` or `20k/answer=yes` (all rows with this answer).

    Raises:
        `ValueError`: if files are missing or do not belong together, or the split is written otherwise.
    """
    if folder is None:
        raise ValueError("VQA-v2 is read from its files. Give the folder that holds them as `benchmark_path`.")
    name, asked = parse_split(forget_split or DEFAULT)
    root = Path(folder).expanduser()
    train, val = (read_vqa(*(root / file.format(part=part) for file in FILES)) for part in ("train", "val"))
    return make_split(train, val, name, 0, **asked)


def parse_split(text: str) -> tuple[str, dict]:
    """`"20k/share=0.05"` to the split's name and what [`make_split`] deletes."""
    name, _, deletion = text.partition("/")
    kind, _, value = (deletion or DEFAULT.partition("/")[2]).partition("=")
    readers = {
        "share": lambda: {"forget": float(value)},
        "rows": lambda: {"forget": int(value)},
        "answer": lambda: {"answer": value},
    }
    try:
        if name not in SPLITS or not value:
            raise ValueError
        return name, readers[kind]()
    except (KeyError, ValueError):
        raise ValueError(
            f"forget_split={text!r}; give one of {', '.join(SPLITS)}, and what is deleted: {DEFAULT!r}, "
            "'20k/rows=500' or '20k/answer=yes'."
        ) from None
