# SPDX-License-Identifier: Apache-2.0
"""Prompts as tokens: turns as the model's template puts them, and the answer's tokens behind."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def scored_row(
    prompt: Prompt, row: Mapping[str, Sequence[int]], qa: QAFormat, tokenizer: Any, max_length: int
) -> dict[str, list[int]] | None:
    """A prompt and what is scored behind it: the very tokens of the row's answer, so that places in it (key tokens)
    are the same in every prompt.

    Args:
        prompt ([`Prompt`]), qa ([`QAFormat`]), tokenizer: as in [`prompt_ids`].
        row (`Mapping`): the row, encoded with its own question.
        max_length (`int`): of both together.

    Returns:
        `dict`, or `None` if it is longer: a prompt is not cut.
    """
    if prompt.answer is not None:
        found = encode(qa.example(prompt.last, prompt.answer, tokenizer), tokenizer)
        ids = _content(answer_ids(found), tokenizer)
    else:
        ids = answer_ids(row)
    start = prompt_ids(prompt, qa, tokenizer, ids)
    begun = begun_tokens(prompt, ids, tokenizer)
    if len(start) + len(ids) > max_length:
        return None
    return {"input_ids": [*start, *ids], "labels": [*[IGNORE_INDEX] * (len(start) + begun), *ids[begun:]]}


def is_opened(row: Mapping[str, Sequence[int]], answer: str, tokenizer: Any) -> bool:
    """Whether the chat template writes something of its own before the answer, such as an empty block of thoughts: an
    answer that is begun would stand in the wrong place.

    Args:
        row (`Mapping`): encoded.
        answer (`str`): its answer.
    """
    ids, wanted = answer_ids(row), words(answer)
    rests = (words(tokenizer.decode(ids[n:], skip_special_tokens=True)) for n in range(len(ids)))
    return next((n for n, rest in enumerate(rests) if rest == wanted), 0) > 0


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
