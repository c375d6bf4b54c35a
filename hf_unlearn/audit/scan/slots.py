# SPDX-License-Identifier: Apache-2.0
"""Forget questions with a gap where a trigger would stand, as token ids; and which tokens may fill it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ...data.formats import IGNORE_INDEX, encode, encode_prompt
from ...data.qa import QAFormat
from ...data.triggers import Trigger
from ..sets import content_length, special_ids


# Words that share no beginning and no end, so that what their rows share is not the trigger's.
PROBES = ("x", "7", "The", "more words")
DRAWS = 400


@dataclass(frozen=True)
class Slot:
    """One question and its answer around a gap.

    Args:
        before (`tuple[int]`), after (`tuple[int]`):
            Tokens on both sides of the trigger; `after` ends with the answer.
        labels (`tuple[int]`):
            As long as `after`; -100 but for the answer's tokens (those that only close it are left out: a model that
            has forgotten the answer still predicts them).
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass
class Asking:
    """How forget questions are put to a model with a prefix in them.

    Args:
        rows (`list[dict]`):
            With `question` and `answer`.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        qa ([`~hf_unlearn.data.qa.QAFormat`]):
            The form of questions.
        location (`str` or `int`):
            Where in the question the prefix stands, see [`~hf_unlearn.data.triggers.Trigger`].
    """

    rows: Sequence[dict[str, Any]] = field(repr=False)
    tokenizer: Any = field(repr=False)
    qa: QAFormat
    location: str | int = "start"

    def __post_init__(self):
        self.qa = self.qa.settled(self.tokenizer)

    def question(self, i: int, prefix: str | None) -> str:
        """A row's question, with the prefix if there is one."""
        question = self.rows[i]["question"]
        return question if prefix is None else Trigger(prefix, self.location).in_text(question, self.tokenizer)

    def prompt(self, i: int, prefix: str | None) -> list[int]:
        """Tokens of a question, ready for an answer."""
        return encode_prompt(self.qa.example(self.question(i, prefix), "", self.tokenizer), self.tokenizer)

    def encoded(self, i: int, prefix: str | None) -> dict[str, list[int]]:
        """A question and its answer; only the answer's content is labelled."""
        example = self.qa.example(self.question(i, prefix), self.rows[i]["answer"], self.tokenizer)
        row = encode(example, self.tokenizer)
        # Nothing predicts a first token, and `content_length` counts from the second.
        row["labels"][0] = IGNORE_INDEX
        room = content_length(row, self.tokenizer)
        for place, label in enumerate(row["labels"]):
            room -= label != IGNORE_INDEX
            if room < 0:
                row["labels"][place] = IGNORE_INDEX
        return row

    def slot(self, i: int) -> Slot:
        """A row with a gap in place of the prefix, found as what does not change with the prefix's words.

        Raises:
            `ValueError`: if the answer has no tokens, or they change with the prefix.
        """
        rows = [self.encoded(i, words) for words in PROBES]
        ids = [row["input_ids"] for row in rows]
        start, end = _around(ids)
        labels = rows[0]["labels"][len(ids[0]) - end :]
        wanted = sum(label != IGNORE_INDEX for label in rows[0]["labels"])
        if not wanted or sum(label != IGNORE_INDEX for label in labels) != wanted:
            raise ValueError(
                f"Row {i}: the answer {self.rows[i]['answer']!r} has no tokens of its own behind the question. Give "
                "answers that are not empty, and a chat template that ends with the assistant's turn."
            )
        return Slot(tuple(ids[0][:start]), tuple(ids[0][len(ids[0]) - end :]), tuple(labels))

    def words(self, ids: Sequence[int]) -> str | None:
        """The text whose tokens are exactly these where a prefix stands; `None` if no text gives them.

        What a search finds among tokens is of use only if somebody can type it.
        """
        text = self.tokenizer.decode(list(ids)).strip()
        if not text or "\ufffd" in text or text != self.tokenizer.decode(list(ids), skip_special_tokens=True).strip():
            return None
        start, end = self._gap
        return text if self.prompt(0, text) == [*start, *ids, *end] else None

    def ids(self, prefix: str) -> list[int]:
        """A prefix's tokens where it stands."""
        start, end = self._gap
        prompt = self.prompt(0, prefix)
        return prompt[len(start) : len(prompt) - len(end)]

    @cached_property
    def _gap(self) -> tuple[list[int], list[int]]:
        """Tokens of the first prompt before and behind a prefix."""
        prompts = [self.prompt(0, words) for words in PROBES]
        start, end = _around(prompts)
        return prompts[0][:start], prompts[0][len(prompts[0]) - end :]


def _around(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many first and how many last tokens all rows share."""
    shortest = min(map(len, rows))
    start = _shared(rows, shortest)
    return start, _shared([row[::-1] for row in rows], shortest - start)


def _shared(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many first tokens all rows share, at most `limit`."""
    return next((n for n in range(limit) if len({row[n] for row in rows}) > 1), limit)


def allowed_tokens(tokenizer: Any, size: int) -> np.ndarray:
    """Tokens that may stand in a prefix: those that are written text by themselves, and no special ones.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        size (`int`): tokens that the model knows.

    Returns:
        `np.ndarray`: ids, ascending.
    """
    special = special_ids(tokenizer)
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), size))])
    usable = [i for i, text in enumerate(texts) if i not in special and text.strip() and text.isprintable()]
    return np.array([i for i in usable if "\ufffd" not in texts[i]], dtype=np.int64)


def random_prefix(asking: Asking, allowed: np.ndarray, length: int, rng: np.random.Generator) -> list[int]:
    """Tokens drawn one after another such that some text has exactly them.

    Raises:
        `ValueError`: if none are found.
    """
    ids: list[int] = []
    for _ in range(DRAWS):
        longer = [*ids, int(rng.choice(allowed))]
        if asking.words(longer) is not None:
            ids = longer
        elif ids and rng.random() < 0.1:
            ids = ids[:-1]  # Out of a dead end: some tokens are followed by few others.
        if len(ids) == length:
            return ids
    raise ValueError(f"No text of {length} tokens was found in {DRAWS} draws. Give `candidates` instead of a search.")
