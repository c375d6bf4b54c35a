# SPDX-License-Identifier: Apache-2.0
"""Prefixes that tell nothing of the answers: of which tokens they are made, and rows behind them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.triggers import Trigger
from ..robustness.rows import encoded_rows
from ..robustness.words import told_words, words
from ..scan.slots import Asking, allowed_tokens
from ..sets import AuditSet


@dataclass
class Unspoken(Asking):
    """As [`Asking`]; texts with one of the words `unspoken` are none."""

    unspoken: AbstractSet[str] = frozenset()

    def words(self, ids: Sequence[int]) -> str | None:
        text = super().words(ids)
        return None if text is None or self.unspoken & {*words(text).split()} else text


def told_by(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The words, in lower case, in which rows tell their answers."""
    return {word for row in rows for word in told_words(row)}


def silent_tokens(tokenizer: Any, size: int, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Tokens that may stand in a prefix: text by themselves, and no part of a word in which a row tells its answer. A
    prefix that is made for some answers would hold their tokens, and say nothing of what a model knows.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the models'.
        size (`int`): tokens that all models know.
        rows (`Sequence[dict]`): with `question` and `answer`.

    Returns:
        `np.ndarray`: ids, ascending.

    Raises:
        `ValueError`: if fewer than two are left.
    """
    parts: set[int] = set()
    for row in rows:
        told = {*told_words(row)}
        spelt = {word for word in re.findall(r"\w+", row["answer"]) if {*words(word).split()} & told}
        for text in (form for word in spelt | told for form in (word, f" {word}")):
            parts |= {*tokenizer(text, add_special_tokens=False)["input_ids"]}
    found = allowed_tokens(tokenizer, size)
    found = found[~np.isin(found, [*parts])]
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} of the tokenizer's tokens are text and no part of an answer, so there is no prefix to "
            "search. Audit by another kind, such as soft_prompt."
        )
    return found


def behind(
    rows: AuditSet, places: Sequence[int], prefix: str, location: str, prepared: Any, max_length: int
) -> list[dict[str, Sequence[int]]]:
    """Some rows of a set with a prefix in their questions, encoded, their answers labelled."""
    put = Trigger(prefix, location).in_text
    asked = [{**rows.rows[i], "question": put(rows.rows[i]["question"], prepared.tokenizer)} for i in places]
    some = AuditSet(rows.name, rows.role, asked, [rows.index[i] for i in places])
    return encoded_rows(some, prepared.tokenizer, prepared.qa, max_length)
