# SPDX-License-Identifier: Apache-2.0
"""Further prompts in the form that the rows' own prompts have: template, system prompt and all."""

from collections.abc import Sequence
from dataclasses import dataclass

from .conversations import common_prefix
from .formats import IGNORE_INDEX, encode_prompt
from .qa import QAFormat


# Two questions that have no token in common at either end.
PROBES = ("Seven", "are 42")
SLOT = "{prompt}"


def prompt_ids(labels: Sequence[int], input_ids: Sequence[int]) -> list[int]:
    """The tokens of a row before the first that is trained on."""
    first = next((place for place, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
    return list(input_ids[:first])


def prompts_of(rows, name: str, method: str) -> list[list[int]]:
    """The prompts of encoded rows.

    Raises:
        `ValueError`: if a row has none.
    """
    found = [prompt_ids(row["labels"], row["input_ids"]) for row in rows]
    if lacking := [number for number, ids in enumerate(found) if not ids]:
        raise ValueError(
            f"{method} reads prompts, and {name} row {lacking[0]} has none: all of it is trained on. Give rows of "
            "`prompt` and `completion`."
        )
    return found


@dataclass
class Form:
    """One way to put a question.

    Args:
        template (`str`, *optional*): text with `{prompt}` in it; a turn of the chat template without.
    """

    template: str | None
    tokenizer: object

    def ids(self, question: str, system: str | None = None) -> list[int]:
        """The question's tokens in this form."""
        if self.template is not None:
            return encode_prompt({"prompt": self.template.replace(SLOT, question)}, self.tokenizer)
        turns = [] if system is None else [{"role": "system", "content": system}]
        return encode_prompt({"prompt": [*turns, {"role": "user", "content": question}]}, self.tokenizer)

    def ends(self) -> tuple[list[int], list[int]]:
        """The tokens before and behind any question."""
        one, two = map(self.ids, PROBES)
        head = common_prefix(one, two)
        return one[:head], _common_suffix(one, two)

    def turn(self) -> list[int] | None:
        """The tokens between any system prompt and the question; `None` without a chat template that takes one."""
        if self.template is not None:
            return None
        heads = []
        for system in PROBES:
            try:
                one, two = (self.ids(question, system) for question in PROBES)
            except ValueError:
                return None
            heads.append(one[: common_prefix(one, two)])
        return _common_suffix(*heads)


def _common_suffix(one: list[int], two: list[int]) -> list[int]:
    return one[len(one) - common_prefix(one[::-1], two[::-1]) :]


def in_form_of(questions: Sequence[str], prompts: Sequence[list[int]], template: str | None, tokenizer) -> list:
    """Questions as tokens, put as the prompts of rows are.

    Args:
        questions (`Sequence[str]`): texts.
        prompts (`Sequence[list[int]]`): tokens of the rows' prompts.
        template (`str`, *optional*): text with `{prompt}` in it. Left out, the chat template is tried, with whatever
            turns stand before the question in all rows, then the form of [`~hf_unlearn.data.qa.QAFormat`].
        tokenizer (`PreTrainedTokenizerBase`): the rows'.

    Raises:
        `ValueError`: if the rows' prompts begin or end otherwise.
    """
    if template is not None:
        forms = [Form(template, tokenizer)]
    else:
        chat = [Form(None, tokenizer)] if getattr(tokenizer, "chat_template", None) else []
        forms = [*chat, Form(QAFormat().prompt_template.replace("{question}", SLOT), tokenizer)]
    for form in forms:
        head, tail = form.ends()
        for preamble in (head, *_preambles(form.turn(), prompts[0])):
            if all(_fits(prompt, preamble, tail) for prompt in prompts):
                return [preamble + form.ids(question)[len(head) :] for question in questions]
    asked = "no `refusal_template` was given" if template is None else f"refusal_template={template!r} is not theirs"
    raise ValueError(
        f"The prompts of the forget rows have another form than the tokenizer's chat template or questions here, and "
        f"{asked}. Give refusal_template: the text of a prompt, with {SLOT} for the question; the first row has "
        f"{tokenizer.decode(prompts[0])!r}."
    )


def _preambles(turn: list[int] | None, prompt: list[int]) -> list[list[int]]:
    """What may stand before the question in a prompt: all up to a `turn`, the last one first."""
    if not turn:
        return []
    places = range(len(prompt) - len(turn), -1, -1)
    return [prompt[: place + len(turn)] for place in places if prompt[place : place + len(turn)] == turn]


def _fits(prompt: list[int], head: list[int], tail: list[int]) -> bool:
    longer = len(prompt) > len(head) + len(tail)
    return longer and prompt[: len(head)] == head and prompt[len(prompt) - len(tail) :] == tail
