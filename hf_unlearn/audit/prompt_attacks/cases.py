# SPDX-License-Identifier: Apache-2.0
"""What a transform is given of a row, and the prompts it makes of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..robustness.words import told_words, words


@dataclass(frozen=True)
class Prompt:
    """One way to ask.

    Args:
        turns (`tuple[tuple[str, str]]`): user's and assistant's text in turn; the last is a question.
        last (`str`): the last question.
        prefill (`str`): with which the assistant's answer begins already.
        begun (`str`): the first words of the row's own answer, which stand there already.
        answer (`str`, *optional*): what is scored in place of the row's answer.
    """

    last: str
    turns: tuple[tuple[str, str], ...] = ()
    prefill: str = ""
    begun: str = ""
    answer: str | None = None


@dataclass
class Case:
    """One row, and what else a transform may use.

    Args:
        row (`Mapping`): `question`, `answer`, and what else it brings.
        subject (`str`, *optional*): whom or what it is about.
        near, others (`Sequence[Mapping]`): other rows of its set, of the same subject and of others.
        kept (`Sequence[Mapping]`): rows that the model is to keep.
        rng (`np.random.Generator`): of this row and transform, in every model the same.
        args: settings.
    """

    row: Mapping[str, Any]
    subject: str | None = None
    near: Sequence[Mapping[str, Any]] = ()
    others: Sequence[Mapping[str, Any]] = ()
    kept: Sequence[Mapping[str, Any]] = ()
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)
    args: Any = None

    @property
    def question(self) -> str:
        return self.row["question"]

    @property
    def answer(self) -> str:
        return self.row["answer"]

    @cached_property
    def told(self) -> list[str]:
        """The words in which the answer tells what is to be forgotten, see [`told_words`]."""
        return told_words(self.row)

    def gives_away(self, text: str) -> bool:
        """Whether a text has all words that the answer tells."""
        return has_all(self.told, text)

    def shown(self, rows: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
        """At most `n` of these rows that do not give the answer away, drawn."""
        drawn = (rows[i] for i in self.rng.permutation(len(rows)))
        fit = (row for row in drawn if not self.gives_away(f"{row['question']} {row['answer']}"))
        return [row for row, _ in zip(fit, range(n), strict=False)]


def has_all(wanted: Sequence[str], text: str) -> bool:
    """Whether all words stand in a text."""
    return bool(wanted) and {*wanted} <= {*words(text).split()}


def split_at(answer: str, told: Sequence[str]) -> str:
    """An answer up to the first word that tells something; empty if that is its first."""
    place = next((m.start() for m in re.finditer(r"\w+", answer) if m.group().casefold() in told), 0)
    return answer[:place]


def blanked(answer: str, told: Sequence[str]) -> str:
    """An answer with a blank in place of each word that tells something."""
    return re.sub(r"\w+", lambda m: "____" if m.group().casefold() in told else m.group(), answer)
