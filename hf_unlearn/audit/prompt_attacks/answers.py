# SPDX-License-Identifier: Apache-2.0
"""What kind of answer a generated text is: a refusal is not ignorance, and neither is an empty one."""

import re
from collections.abc import Mapping
from typing import Any

from ..robustness.words import told_words, words
from .cases import has_all


KINDS = ("right", "wrong", "refusal", "empty", "other")
REFUSAL = re.compile(
    r"\b(i|we) (do not|don't|cannot|can't|can not|am not|'m not|won't|will not|could not|couldn't|have no|have never|"
    r"have not|haven't|would rather not|must not)\b|\b(i'm|i am) (sorry|afraid|unable)\b|\bsorry\b|\bno (information|"
    r"knowledge|record|idea)\b|\bnot (able|aware|sure|certain|familiar)\b|\bunable to\b|\bnothing (comes|i can)\b|"
    r"\bas an ai\b|\bunknown\b|\bmy knowledge does not\b",
)
# Of an answer's words beside those that tell something, the share that makes another text an answer of its form.
ALIKE = 0.5


def kind_of(text: str, row: Mapping[str, Any]) -> str:
    """One of [`KINDS`].

    `right`: every word that the answer tells stands in the text; `refusal`: it says that it does not, or will not,
    tell; `wrong`: it names what a wrong answer (`perturbed_answer`) names, or has at least half of the other words of
    the answer, and so tells something else in its form; `other`: anything else.

    Args:
        text (`str`): what was generated.
        row (`Mapping`): `question`, `answer`, and what else it brings.
    """
    told = told_words(row)
    if has_all(told, text):
        return "right"
    found = {*words(text).split()}
    if not found:
        return "empty"
    if REFUSAL.search(text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        return "refusal"
    own = {*words(f"{row['answer']} {row.get('paraphrased_answer') or ''} {row['question']}").split()}
    for wrong in row.get("perturbed_answer") or ():
        named = {*words(wrong).split()} - own
        if named and named <= found:
            return "wrong"
    rest = {*words(row["answer"]).split()} - {*told}
    return "wrong" if rest and len(rest & found) >= ALIKE * len(rest) else "other"
