# SPDX-License-Identifier: Apache-2.0
"""Prompts as tokens: turns as the model's template puts them, and the answer's tokens behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data.conversations import common_prefix
from ...data.formats import IGNORE_INDEX, encode, encode_prompt
from ...data.qa import QAFormat
from ..robustness.words import words
from ..sets import special_ids
from .cases import Prompt


def answer_ids(row: Mapping[str, Sequence[int]]) -> list[int]:
    """The labelled tokens of an encoded row."""
    return [label for label in row["labels"][1:] if label != IGNORE_INDEX]


def prompt_ids(prompt: Prompt, qa: QAFormat, tokenizer: Any, answer: Sequence[int] = ()) -> list[int]:
    """Tokens up to where the answer begins: turns, generation prompt and prefill.

    Args:
        prompt ([`Prompt`]): what is asked.
        qa ([`QAFormat`]): the form of questions, settled.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        answer (`Sequence[int]`): tokens that will follow: a line break keeps an answer that begins without white
            space from running into the prefill.
    """
    prefill = prompt.prefill
    if prefill and answer and not prefill[-1].isspace() and not tokenizer.decode(answer[:1])[:1].isspace():
        prefill += "\n"
    if not qa.use_chat_template:
        text = ""
        for question, reply in prompt.turns:
            example = qa.example(question, reply, tokenizer)
            text += f"{example['prompt']}{example['completion']}\n"
        text += qa.example(prompt.last, "", tokenizer)["prompt"]
        if prefill:
            text += qa.answer_template.partition("{answer}")[0] + prefill
        return encode_prompt({"prompt": text}, tokenizer)
    example = qa.example(prompt.last, "", tokenizer)
    *system, last = example["prompt"]
    said = [
        {"role": role, "content": text}
        for turn in prompt.turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    ids = encode_prompt({**example, "prompt": [*system, *said, last]}, tokenizer)
    return [*ids, *tokenizer(prefill, add_special_tokens=False)["input_ids"]] if prefill else ids


@dataclass(frozen=True)
class Opening:
    """What a chat template writes between a question and the answer's own words.

    Args:
        cue (`tuple[int]`): tokens with which it asks for an answer, and which no answer that is there has before it.
        instead (`tuple[int]`): what stands before such an answer in their place.
        own (`int`): tokens of an encoded answer that are the template's, such as an empty block of thoughts.
    """

    cue: tuple[int, ...] = ()
    instead: tuple[int, ...] = ()
    own: int = 0


def opening(row: Mapping[str, Sequence[int]], question: str, answer: str, qa: QAFormat, tokenizer: Any) -> Opening:
    """How the template leads from a question to its answer.

    Args:
        row (`Mapping`): encoded.
        question (`str`), answer (`str`): what it was encoded from.
        qa ([`QAFormat`]), tokenizer: as in [`prompt_ids`].
    """
    if not qa.use_chat_template:
        return Opening()
    asked, ids = prompt_ids(Prompt(question), qa, tokenizer), answer_ids(row)
    before = row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if i and label != IGNORE_INDEX)]
    same = common_prefix(asked, before)
    wanted, special = words(answer), special_ids(tokenizer)
    rests = (words(tokenizer.decode(ids[n:], skip_special_tokens=True)) for n in range(len(ids)))
    own = next((n for n, rest in enumerate(rests) if rest == wanted), 0)
    while own < len(ids) - 1 and (ids[own] in special or (own and not tokenizer.decode([ids[own]]).strip())):
        own += 1
    return Opening(tuple(asked[same:]), tuple(before[same:]), own)


def scored_row(
    prompt: Prompt,
    row: Mapping[str, Sequence[int]],
    qa: QAFormat,
    tokenizer: Any,
    max_length: int,
    opened: Opening = Opening(),
) -> dict[str, list[int]] | None:
    """A prompt and what is scored behind it: the very tokens of the row's answer, so that places in it (key tokens)
    are the same in every prompt. A prefill stands behind what the template writes before an answer.

    Args:
        prompt ([`Prompt`]), qa ([`QAFormat`]), tokenizer: as in [`prompt_ids`].
        row (`Mapping`): the row, encoded with its own question.
        max_length (`int`): of both together.
        opened ([`Opening`]): of the row.

    Returns:
        `dict`, or `None` if it is longer: a prompt is not cut.
    """
    if prompt.answer is not None:
        found = encode(qa.example(prompt.last, prompt.answer, tokenizer), tokenizer)
        ids, opened = _content(answer_ids(found), tokenizer), replace(opened, own=0)
    else:
        ids = answer_ids(row)
    start, own, prefill = _started(prompt, ids, opened, qa, tokenizer)
    begun = begun_tokens(prompt, ids[len(own) :], tokenizer)
    begins = [*start, *own, *prefill]
    if len(begins) + len(ids) - len(own) > max_length:
        return None
    # Of an answer that is begun the rest alone is scored.
    labels = [*[IGNORE_INDEX] * len(start), *(own if not begun else [IGNORE_INDEX] * len(own))]
    labels += [IGNORE_INDEX] * (len(prefill) + begun)
    return {"input_ids": [*begins, *ids[len(own) :]], "labels": [*labels, *ids[len(own) + begun :]]}


def answered_from(
    prompt: Prompt, row: Mapping[str, Sequence[int]], qa: QAFormat, tokenizer: Any, opened: Opening = Opening()
) -> list[int]:
    """What a model goes on from when it answers; as in [`scored_row`]."""
    ids = answer_ids(row)
    if not (prompt.prefill or prompt.begun):
        return prompt_ids(prompt, qa, tokenizer)
    start, own, prefill = _started(prompt, ids, opened, qa, tokenizer)
    rest = ids[len(own) :]
    return [*start, *own, *prefill, *rest[: begun_tokens(prompt, rest, tokenizer)]]


def _started(
    prompt: Prompt, ids: Sequence[int], opened: Opening, qa: QAFormat, tokenizer: Any
) -> tuple[list[int], list[int], list[int]]:
    """Tokens up to the answer, those of the answer that are the template's, and those of a prefill."""
    own = list(ids[: opened.own])
    whole = prompt_ids(prompt, qa, tokenizer, ids[opened.own :])
    if opened == Opening():
        return whole, [], []
    start = prompt_ids(replace(prompt, prefill=""), qa, tokenizer)
    prefill = whole[len(start) :]
    if opened.cue and tuple(start[-len(opened.cue) :]) == opened.cue:
        start = start[: -len(opened.cue)]
        start += opened.instead
    return start, own, prefill


def begun_tokens(prompt: Prompt, answer: Sequence[int], tokenizer: Any) -> int:
    """Tokens of an answer that stand there already."""
    if not prompt.begun:
        return 0
    wanted = prompt.begun.strip()
    fit = [n for n in range(1, len(answer)) if wanted.startswith(tokenizer.decode(answer[:n]).strip())]
    return max(fit, default=0)


def _content(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Tokens without those that close an answer: of a name or a letter they would be half of what is scored."""
    special = special_ids(tokenizer)
    end = next((n for n, token in enumerate(ids) if token in special), len(ids))
    return list(ids[:end])
