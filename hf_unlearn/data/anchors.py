# SPDX-License-Identifier: Apache-2.0
"""Rows in which the terms of a dictionary are replaced by generic ones, and which of their tokens still stand for the
original's (anchor terms, https://huggingface.co/papers/2310.02238, section 2.3).

Tokens outside of a term stay as they are, so that both rows predict them at places that are known; a replacement may
have more tokens than its term, or fewer.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..yaml_file import load_yaml
from .formats import IGNORE_INDEX
from .token_ends import special_ids, text_and_ends


logger = logging.getLogger(__name__)


def read_anchors(name: str, path: str) -> dict[str, str]:
    """The terms of a JSON or YAML file and what replaces them.

    Args:
        name (`str`): of the setting, for errors.
        path (`str`): the file.

    Raises:
        `ValueError`: if it holds anything but a mapping of different terms to other texts.
    """
    found = load_yaml(Path(path), f"{name}={path!r} is no file. Give a JSON or YAML file of terms and generic terms.")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{name}: {path} holds no terms. Write a mapping of terms to generic terms, `Harry: Jon`.")
    for term, generic in found.items():
        for text in (term, generic):
            if not isinstance(text, str) or not text or text != text.strip():
                raise ValueError(
                    f"{name}: {path} has {term!r}: {generic!r}. Give two texts that neither begin nor end with a "
                    "space; quote what YAML takes for a number or a truth value."
                )
        if term == generic:
            raise ValueError(f"{name}: {path} replaces {term!r} by itself. Leave the term out, or give a generic one.")
    return found


@dataclass(frozen=True)
class Span:
    """Tokens of a row that are replaced together.

    Args:
        start, stop (`int`): the tokens.
        text (`str`): what they stand for in the end.
        new (`bool`): whether all terms in it stand there for the first time.
    """

    start: int
    stop: int
    text: str
    new: bool


class Anchors:
    """Replaces terms in encoded rows.

    Args:
        terms (`Mapping[str, str]`): term to generic term; where several begin at one place, the longest counts. A term
            is a whole word, or several, written as it is here.
        tokenizer (`PreTrainedTokenizerBase`): that the rows were encoded with.
    """

    def __init__(self, terms: Mapping[str, str], tokenizer):
        self.terms, self.tokenizer, self.special = dict(terms), tokenizer, special_ids(tokenizer)
        longest_first = sorted(map(re.escape, self.terms), key=len, reverse=True)
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)")

    def replaced(self, row: Mapping[str, Sequence[int]]) -> tuple[list[int], dict[str, list[int]]]:
        """The labels that a row keeps, and the row with its terms replaced, which predicts as many tokens, one for
        each of them in the same order.

        Of a term, its first token is predicted where the row has the term for the first time: a text that has named
        its generic person goes on with that name. All its other tokens lose their label.

        Args:
            row (`Mapping`): `input_ids` and `labels`.

        Raises:
            `ValueError`: where the tokenizer has no tokens for the text that results.
        """
        # What stands first is not predicted, whatever its label.
        labels = [IGNORE_INDEX, *row["labels"][1:]]
        kept, new, seen = [], {"input_ids": [], "labels": []}, set()
        for ids, own in self._texts(row["input_ids"], labels):
            done, before = 0, []
            for span in [] if ids[0] in self.special else self._spans(ids, seen):
                between = own[done : span.start]
                tokens = self._tokens(before + ids[done : span.start], span)
                first = own[span.start] if span.new else IGNORE_INDEX
                kept += [*between, first] + [IGNORE_INDEX] * (span.stop - span.start - 1)
                # Any label marks the place: what is predicted there is compared as a whole.
                marked = IGNORE_INDEX if first == IGNORE_INDEX else tokens[0]
                new["labels"] += [*between, marked] + [IGNORE_INDEX] * (len(tokens) - 1)
                before += ids[done : span.start] + tokens
                done = span.stop
            kept += own[done:]
            new["labels"] += own[done:]
            new["input_ids"] += before + ids[done:]
        return kept, new

    def _texts(self, ids: Sequence[int], labels: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """The row in parts: special tokens, and what stands between them."""
        for _, part in groupby(zip(ids, labels, strict=True), lambda pair: pair[0] in self.special):
            found = list(part)
            yield [token for token, _ in found], [label for _, label in found]

    def _spans(self, ids: Sequence[int], seen: set[str]) -> Iterator[Span]:
        text, ends = text_and_ends(self.tokenizer, ids)
        # Matches whose tokens overlap, together.
        groups: list[tuple[int, int, list[re.Match]]] = []
        for match in self.pattern.finditer(text):
            # From the first token that ends behind the match's begin to the first that ends at its end or behind it.
            start, stop = int((ends <= match.start()).sum()), int((ends < match.end()).sum()) + 1
            # A character of several tokens ends with each of them.
            stop = int((ends <= ends[stop - 1]).sum())
            if groups and start < groups[-1][1]:
                start, _, matches = groups.pop()
                groups.append((start, stop, [*matches, match]))
            else:
                groups.append((start, stop, [match]))
        for start, stop, matches in groups:
            done, written = int(ends[start - 1]) if start else 0, ""
            for match in matches:
                written += text[done : match.start()] + self.terms[match[0]]
                done = match.end()
            terms = {match[0] for match in matches}
            yield Span(start, stop, written + text[done : int(ends[stop - 1])], new=not terms & seen)
            seen |= terms

    def _tokens(self, before: list[int], span: Span) -> list[int]:
        """Tokens of a span's text, such that all reads as it should: some tokenizers begin every text with a space."""
        wanted = self._text(before) + span.text
        # As it would be behind this text; else by itself, without its space, and behind a line's end.
        behind = [
            (wanted, before),
            (span.text, []),
            (span.text.lstrip(" "), []),
            ("\n" + span.text, self._encoded("\n")),
        ]
        for text, head in behind:
            tokens = self._encoded(text)
            tokens = tokens[len(head) :] if tokens[: len(head)] == head else []
            if tokens and self._text([*before, *tokens]) == wanted:
                return tokens
        raise ValueError(
            f"The tokenizer has no tokens for {span.text!r} behind {self._text(before)[-40:]!r}. Replace the term "
            "by another one."
        )

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _text(self, ids: Sequence[int]) -> str:
        return text_and_ends(self.tokenizer, ids)[0]


def anchored(rows, terms: Mapping[str, str], tokenizer, max_length: int | None = None) -> tuple[Any, Any]:
    """Encoded rows with the labels that are left to them, and with their terms replaced; see [`Anchors.replaced`].

    A replaced row that is longer than `max_length` loses its end, as every row does, and its original the labels of
    what is lost. A row may be left without labels (see [`labelled`]).

    Args:
        rows (`datasets.Dataset`): `input_ids` and `labels`.
        terms (`Mapping[str, str]`), tokenizer: see [`Anchors`].
        max_length (`int`, *optional*): longest row in tokens.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: row for row.

    Raises:
        `ValueError`: if no row has a term, or none a label that is left.
    """
    from datasets import Dataset

    anchors = Anchors(terms, tokenizer)
    labels, columns, held, shortened = [], {"input_ids": [], "labels": []}, 0, 0
    for row in rows:
        kept, new = anchors.replaced(row)
        held += new["input_ids"] != list(row["input_ids"])
        if max_length is not None and len(new["input_ids"]) > max_length:
            kept, new = _shortened(kept, new, max_length)
            shortened += 1
        labels.append(kept)
        for name, values in new.items():
            columns[name].append(values)
    if not held:
        raise ValueError(
            f"anchors: no forget row has any of the {len(terms)} terms, such as {next(iter(terms))!r}. Write whole "
            "words as the rows have them, or leave the file out."
        )
    left = sum(label != IGNORE_INDEX for kept in labels for label in kept)
    if not left:
        behind = f" or behind max_length={max_length}" if shortened else ""
        raise ValueError(
            f"anchors: all that the forget rows predict is in terms{behind}. Name fewer, or leave the file out."
        )
    before = sum(label != IGNORE_INDEX for own in rows["labels"] for label in own[1:])
    logger.info(
        "Anchor terms are in %d of %d forget rows; %d of %d predicted tokens are left out.",
        held,
        len(rows),
        before - left,
        before,
    )
    if shortened:
        logger.info(
            "%d of %d forget rows are longer than max_length=%d once terms are replaced: what is behind is left out.",
            shortened,
            len(rows),
            max_length,
        )
    changed = rows.remove_columns("labels").add_column("labels", labels)
    return changed, Dataset.from_dict(columns)


def _shortened(kept: list[int], new: dict[str, list[int]], length: int) -> tuple[list[int], dict[str, list[int]]]:
    """A replaced row without its end, and the labels of its original without as many of their last."""
    cut = {name: values[:length] for name, values in new.items()}
    left = sum(label != IGNORE_INDEX for label in cut["labels"])
    places = [place for place, label in enumerate(kept) if label != IGNORE_INDEX]
    end = places[left] if left < len(places) else len(kept)
    return [*kept[:end], *[IGNORE_INDEX] * (len(kept) - end)], cut


def labelled(rows) -> list[int]:
    """Places of the rows that have a label; a warning counts the others, which nothing could be learnt from."""
    found = [place for place, labels in enumerate(rows["labels"]) if any(label != IGNORE_INDEX for label in labels)]
    if len(found) < len(rows):
        logger.warning(
            "anchors: %d of %d forget rows are left out: all that they predict is in terms, or behind max_length.",
            len(rows) - len(found),
            len(rows),
        )
    return found
