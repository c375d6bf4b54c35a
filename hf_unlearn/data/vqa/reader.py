# SPDX-License-Identifier: Apache-2.0
"""VQA-v2 from the files it is published in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .images import check_images


if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 3


def read_vqa(questions: str | os.PathLike, annotations: str | os.PathLike, images: str | os.PathLike) -> Dataset:
    """
    Read VQA-v2 (Goyal et al., 2017, https://visualqa.org/download.html), or another set in its form.

    Answers are taken as the annotations hold them, which for VQA-v2 means lower case and without most articles and
    punctuation; what else the official evaluation script does to them (number words, contractions) is not done here.

    Args:
        questions (`str` or `Path`):
            For example `v2_OpenEnded_mscoco_train2014_questions.json`.
        annotations (`str` or `Path`):
            For example `v2_mscoco_train2014_annotations.json`.
        images (`str` or `Path`):
            Folder with `COCO_train2014_000000000009.jpg` and so on.

    Returns:
        `datasets.Dataset`: a row a question, in the order of the questions, with `example_id` (the question's id),
        `image_id`, `image` (read when it is asked for), `question`, `answers` (of all annotators, ten in VQA-v2) and
        `answer` (the majority's).

    Raises:
        `ValueError`: if a file is missing or of another form, if questions and annotations do not belong together, or
        if pictures are missing.
    """
    asked, subset = _entries(questions, "questions", ("question_id", "image_id", "question"))
    fields = ("question_id", "image_id", "answers", "multiple_choice_answer")
    annotated, _ = _entries(annotations, "annotations", fields)
    answered = {entry["question_id"]: entry for entry in annotated}
    _check_match(asked, annotated, answered)
    paths = [os.path.join(images, f"COCO_{subset}_{entry['image_id']:012d}.jpg") for entry in asked]
    check_images(paths, str(questions))
    return _dataset(asked, answered, paths)


def _dataset(asked: list[dict], answered: dict[int, dict], paths: list[str]) -> Dataset:
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    features = dict.fromkeys(("example_id", "image_id", "question", "answer"), text)
    columns = {
        "example_id": [str(entry["question_id"]) for entry in asked],
        "image_id": [str(entry["image_id"]) for entry in asked],
        "image": paths,
        "question": [entry["question"] for entry in asked],
        "answers": [[given["answer"] for given in answered[entry["question_id"]]["answers"]] for entry in asked],
        "answer": [answered[entry["question_id"]]["multiple_choice_answer"] for entry in asked],
    }
    return Dataset.from_dict(columns, Features({**features, "answers": List(text), "image": Image()}))


def _entries(path: str | os.PathLike, key: str, fields: Iterable[str]) -> tuple[list[dict], str]:
    """The list under `key` of a published file, and its `data_subtype`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No file at {path}. Give the {key} file of VQA-v2 (unzipped JSON).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from error
    needed = (key, "data_subtype")
    if not isinstance(content, dict) or any(name not in content for name in needed):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is no {key} file of VQA-v2: it must hold {' and '.join(needed)}, and has {found}.")
    if not content[key]:
        raise ValueError(f"{path} holds no {key}.")
    for number, entry in enumerate(content[key]):
        if lacking := [name for name in fields if name not in entry]:
            raise ValueError(f"Entry {number} of {path} has no {', '.join(lacking)}, only {sorted(entry)}.")
    return content[key], content["data_subtype"]


def _check_match(asked: list[dict], annotated: list[dict], answered: dict[int, dict]) -> None:
    ids = [entry["question_id"] for entry in asked]
    for name, entries in (("questions", asked), ("annotations", annotated)):
        repeated = len(entries) - len({entry["question_id"] for entry in entries})
        if repeated:
            raise ValueError(f"The {name} have {repeated} repeated question_ids; each must occur once.")
    without = [i for i in ids if i not in answered]
    unasked = sorted(set(answered) - set(ids))
    if without or unasked:
        raise ValueError(
            f"Questions and annotations do not belong together: {len(without)} questions have no annotation"
            f"{_first(without)}, {len(unasked)} annotations have no question{_first(unasked)}. "
            "Give both files of the same subset."
        )
    elsewhere = [e["question_id"] for e in asked if answered[e["question_id"]]["image_id"] != e["image_id"]]
    if elsewhere:
        raise ValueError(
            f"{len(elsewhere)} questions are about another picture than their annotation{_first(elsewhere)}. "
            "Give both files of the same subset."
        )
    silent = [i for i in ids if not answered[i]["answers"]]
    if silent:
        raise ValueError(f"{len(silent)} annotations have no answers{_first(silent)}.")


def _first(ids: list) -> str:
    return f" (question_id {', '.join(map(str, ids[:_SHOWN]))}{', ...' if len(ids) > _SHOWN else ''})" if ids else ""
