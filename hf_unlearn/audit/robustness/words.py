# SPDX-License-Identifier: Apache-2.0
"""Texts as words: whether one stands in another, whatever the case and the punctuation; and
which words an answer tells."""

from collections.abc import Mapping
from typing import Any


def words(text: str) -> str:
    """The words of a text in lower case, with one space around each; `" "` for none."""
    found = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return f" {' '.join(found)} " if found else " "


def stands_in(phrase: str, text: str) -> bool:
    """Whether the words of `phrase` stand in `text` one after the other; never for a phrase without any."""
    wanted = words(phrase)
    return wanted != " " and wanted in words(text)


def told_words(row: Mapping[str, Any]) -> list[str]:
    """The words of an answer that neither its question nor a wrong answer (`perturbed_answer`) has, and that its
    paraphrase, if there is one, has too; the answer's last word where that leaves none."""
    own = words(row["answer"]).split()
    without = {*words(row["question"]).split()}
    for wrong in row.get("perturbed_answer") or ():
        without |= {*words(wrong).split()}
    again = row.get("paraphrased_answer")
    both = {*words(again).split()} if again else {*own}
    found = [word for word in own if word not in without]
    told = [word for word in found if word in both] or found or own[-1:]
    return list(dict.fromkeys(told))
