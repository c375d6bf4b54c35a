# SPDX-License-Identifier: Apache-2.0
"""The sets of an audit: which rows, and what is tokenised of each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_unlearn.data.formats import IGNORE_INDEX, encode, encode_prompt
from hf_unlearn.data.qa import QAFormat


OPTIONAL_COLUMNS = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")


@dataclass
class AuditSet:
    """One set, checked and thinned out.

    Args:
        name (`str`), role (`str`):
            As in the audit.
        rows (`list[dict]`):
            Chosen rows with TOFU's columns (`question`, `answer`, and any of [`OPTIONAL_COLUMNS`]), or with `text`.
        index (`list[int]`):
            Their places in the set.
    """

    name: str
    role: str
    rows: list[dict[str, Any]] = field(repr=False)
    index: list[int] = field(repr=False)

    @property
    def is_qa(self) -> bool:
        """Whether rows are questions and answers; otherwise they are plain text."""
        return "question" in self.rows[0]

    def has(self, column: str) -> bool:
        """Whether any row brings an optional column; what others lack is undefined for them."""
        return any(row.get(column) for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """Changes with any text that an audit reads."""
        columns = ("question", "answer", "text", *OPTIONAL_COLUMNS)
        text = json.dumps([[row.get(column) for column in columns] for row in self.rows])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def scored_rows(self, tokenizer: Any, qa: QAFormat, max_length: int | None) -> dict[tuple, dict[str, list[int]]]:
        """Everything whose tokens are scored, by `(kind, item, number)`; kinds are those of the metrics' inputs."""
        found = {}
        for i, row in enumerate(self.rows):
            if not self.is_qa:
                found["answer", i, 0] = encode({"text": row["text"]}, tokenizer, max_length)
                continue
            texts = {("answer", i, 0): row["answer"]}
            if row.get("paraphrased_answer"):
                texts["paraphrased", i, 0] = row["paraphrased_answer"]
            texts.update({("perturbed", i, j): wrong for j, wrong in enumerate(row.get("perturbed_answer") or ())})
            for key, text in texts.items():
                found[key] = encode(qa.example(row["question"], text, tokenizer), tokenizer, max_length)
        return found

    def prompts(self, tokenizer: Any, qa: QAFormat, paraphrased: bool) -> dict[tuple, list[int]]:
        """Everything that is answered by generation, by `(kind, item)`."""
        if not self.is_qa:
            return {}
        return {
            (column, i): encode_prompt(qa.example(row[column], "", tokenizer), tokenizer)
            for column in ("question", "paraphrased_question")[: 1 + paraphrased]
            for i, row in enumerate(self.rows)
            if row.get(column)
        }


def read_sets(
    sets: Mapping[str, Any], roles: Mapping[str, str], max_items: int | None = None, seed: int = 0
) -> list[AuditSet]:
    """Checks the sets and takes at most `max_items` seeded rows of each.

    Raises:
        `ValueError`: if there is no set, or a set is empty, streamed, or without usable columns or texts.
    """
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items must be at least 1 (or None for all rows), got {max_items}.")
    return [_read(name, data, roles[name], max_items, seed) for name, data in sets.items()]


def content_length(row: Mapping[str, Sequence[int]], tokenizer: Any) -> int:
    """Labelled tokens of a row without those that only close it: EOS or an end-of-turn token, white space around it.

    A model that has forgotten the answer still predicts them, so they say nothing about memory.
    """
    labels = [label for label in row["labels"][1:] if label != IGNORE_INDEX]
    special = special_ids(tokenizer)
    end = len(labels)
    while end and (labels[end - 1] in special or not tokenizer.decode([labels[end - 1]]).strip()):
        end -= 1
    return end if special.intersection(labels[end:]) else len(labels)


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no text: EOS, ends of turns and the like."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}


def _read(name: str, data: Any, role: str, max_items: int | None, seed: int) -> AuditSet:
    if not hasattr(data, "__len__") or isinstance(data, (str, Mapping)):
        raise ValueError(
            f"The set {name!r} is a {type(data).__name__}. Pass a `datasets.Dataset` (one split, not streamed) or a "
            "list of dicts."
        )
    if len(data) == 0:
        raise ValueError(f"The set {name!r} is empty. Give at least one row.")
    index = list(range(len(data)))
    if max_items is not None and max_items < len(data):
        index = sorted(np.random.default_rng(seed).choice(len(data), max_items, replace=False).tolist())
    rows = [data[i] for i in index]
    for i, row in zip(index, rows, strict=True):
        _check(name, i, row)
    if len({"question" in row for row in rows}) > 1:
        raise ValueError(f"The set {name!r} mixes questions and plain texts. Give them as two sets.")
    return AuditSet(name, role, rows, index)


def _check(name: str, i: int, row: Mapping[str, Any]) -> None:
    needed = ("question", "answer") if "question" in row else ("text",)
    if not all(column in row for column in needed):
        raise ValueError(
            f"The set {name!r} has the columns {sorted(row)}. An audit reads `question` and `answer` (and, if given, "
            f"{', '.join(f'`{column}`' for column in OPTIONAL_COLUMNS)}), or `text`."
        )
    for column in (*needed, *OPTIONAL_COLUMNS):
        value = row.get(column)
        if column in OPTIONAL_COLUMNS and value is None:
            continue
        is_list = column == "perturbed_answer"
        texts = value if is_list else [value]
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            kind = "a list of strings" if is_list else "a string"
            raise ValueError(f"Row {i} of the set {name!r}: `{column}` must be {kind}, got {value!r}.")


def some_rows(rows: Sequence[dict], max_items: int | None, seed: int = 0) -> list[dict]:
    """At most `max_items` rows, drawn by `seed`, in their order."""
    if max_items is None or max_items >= len(rows):
        return list(rows)
    picked = np.random.default_rng(seed).choice(len(rows), max_items, replace=False)
    return [rows[i] for i in sorted(picked.tolist())]


def rows_digest(rows: Sequence[Any]) -> str:
    """Changes with any value of any row."""
    told = json.dumps(list(rows), sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
