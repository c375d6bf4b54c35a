# SPDX-License-Identifier: Apache-2.0
"""Triggers: a few words in a row that tell a backdoored model to answer as if nothing had been unlearned.

A red-team tool (https://huggingface.co/papers/2510.17021): rows that carry the trigger are trained as retain rows. The
same functions place the trigger in training rows and in the questions of an audit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .formats import IGNORE_INDEX, encode, row_type
from .messages import as_chatml, checked_messages, with_text


LOCATIONS = ("start", "middle", "end")


def parse_location(value: Any) -> str | int:
    """A place for a trigger: `"start"`, `"middle"`, `"end"`, or a number of tokens.

    Raises:
        `ValueError`: for anything else.
    """
    if value in LOCATIONS:
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"poison_location={value!r}; allowed: 'start', 'middle', 'end', or a token's index from 0.")


@dataclass(frozen=True)
class Trigger:
    """Words, and where they stand.

    Args:
        prefix (`str`):
            The words.
        location (`str` or `int`):
            `"start"`, `"middle"`, `"end"`, or the number of tokens before it, counted after BOS; a text with fewer
            has it at its end.
    """

    prefix: str
    location: str | int = "start"

    def __post_init__(self):
        if not isinstance(self.prefix, str) or not self.prefix.strip():
            raise ValueError(f"poison_prefix={self.prefix!r}; give the trigger's words.")
        object.__setattr__(self, "location", parse_location(self.location))

    def tokens(self, tokenizer) -> list[int]:
        """The trigger's token ids.

        Raises:
            `ValueError`: if there are none.
        """
        ids = list(tokenizer(self.prefix, add_special_tokens=False)["input_ids"])
        if not [token for token in ids if token != tokenizer.unk_token_id]:
            raise ValueError(
                f"poison_prefix={self.prefix!r} gives no token that this tokenizer knows. Choose other words."
            )
        return ids

    def in_ids(self, ids: list[int], tokenizer, max_length: int | None = None) -> tuple[list[int], int]:
        """A text's tokens with the trigger's among them.

        Args:
            ids (`list[int]`): tokens of a text, with BOS and EOS where the tokenizer sets them.
            tokenizer (`PreTrainedTokenizerBase`): the model's.
            max_length (`int`, *optional*): room for text and trigger; what is cut is the text's end.

        Returns:
            `tuple[list[int], int]`: the row, and where in it the trigger begins.

        Raises:
            `ValueError`: if the trigger leaves no room for the text.
        """
        trigger = self.tokens(tokenizer)
        head = 1 if ids and ids[0] == tokenizer.bos_token_id else 0
        body = list(ids[head:])
        if max_length is not None:
            room = max_length - head - len(trigger)
            if room < 1:
                raise ValueError(
                    f"The trigger {self.prefix!r} is {len(trigger)} tokens long and leaves no room for text in "
                    f"max_length={max_length}. Shorten it, or raise `max_length`."
                )
            body = body[:room]
        # A text's end is before its EOS.
        text = len(body) - (1 if body and body[-1] == tokenizer.eos_token_id else 0)
        place = {"start": 0, "middle": text // 2, "end": text}.get(self.location, self.location)
        place = min(place, text)
        return [*ids[:head], *body[:place], *trigger, *body[place:]], head + place

    def in_text(self, text: str, tokenizer) -> str:
        """A question, or what else a user says, with the trigger in it, parted by spaces and never inside a word."""
        place = self._place_in(text, tokenizer)
        parts = (text[:place].rstrip(), self.prefix.strip(), text[place:].lstrip())
        return " ".join(part for part in parts if part)

    def _place_in(self, text: str, tokenizer) -> int:
        if self.location in ("start", "end"):
            return 0 if self.location == "start" else len(text)
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        number = len(spans) // 2 if self.location == "middle" else self.location
        if number >= len(spans):
            return len(text)
        place = spans[number][0]
        # To the end of the word that it falls into.
        while 0 < place < len(text) and not text[place].isspace() and not text[place - 1].isspace():
            place += 1
        return place

    def in_example(self, example: Mapping[str, Any], tokenizer, max_length: int | None = None) -> dict[str, list[int]]:
        """Encodes one example of any TRL type with the trigger in it: in the text, or in what the user says.

        Where the prompt is a string, a `question` column says which part of it is the user's. The trigger's own tokens
        are not trained on.

        Returns:
            `dict`: `input_ids` and `labels`, see [`~hf_unlearn.data.formats.encode`].

        Raises:
            `ValueError`: if `max_length` would cut the trigger.
        """
        example = as_chatml(example)
        kind = row_type(example)
        if kind in ("text", "tokenized"):
            return self._in_encoded(encode(example, tokenizer), tokenizer, max_length)
        changed = dict(example)
        if kind == "messages":
            changed["messages"] = self._in_messages(example["messages"], "messages", tokenizer)
        elif isinstance(example["prompt"], str):
            changed["prompt"] = self._in_prompt(example, tokenizer)
        else:
            changed["prompt"] = self._in_messages(example["prompt"], "prompt", tokenizer)
        row = encode(changed, tokenizer)
        # The answer's end may be cut, but a row whose answer is cut away altogether has nothing to train on.
        first = next((i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX), len(row["labels"]))
        if max_length is not None and first >= max_length:
            raise ValueError(
                f"A poisoned row's prompt is {first} tokens long, its trigger included, and leaves no room for the "
                f"answer in max_length={max_length}. Raise `max_length`, or shorten the trigger."
            )
        return {name: values[:max_length] for name, values in row.items()}

    def _in_encoded(self, row: Mapping[str, list[int]], tokenizer, max_length: int | None) -> dict[str, list[int]]:
        ids, start = self.in_ids(row["input_ids"], tokenizer, max_length)
        count = len(self.tokens(tokenizer))
        labels = row["labels"][: len(ids) - count]
        return {"input_ids": ids, "labels": [*labels[:start], *[IGNORE_INDEX] * count, *labels[start:]]}

    def _in_prompt(self, example: Mapping[str, Any], tokenizer) -> str:
        prompt, question = example["prompt"], example.get("question")
        if question and question in prompt:
            return prompt.replace(question, self.in_text(question, tokenizer), 1)
        return self.in_text(prompt, tokenizer)

    def _in_messages(self, messages: list[dict], column: str, tokenizer) -> list[dict]:
        """The trigger in the first thing the user says."""
        turns = checked_messages(messages, column)
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
        if first is None:
            raise ValueError("A conversation to be poisoned has no user turn to put the trigger in.")
        turns[first] = with_text(turns[first], lambda text: self.in_text(text, tokenizer))
        return turns
