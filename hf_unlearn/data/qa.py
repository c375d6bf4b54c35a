# SPDX-License-Identifier: Apache-2.0
"""How a question and its answer become a prompt and a completion: in training and in audits the same way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .tables import check_strings, mapped


@dataclass
class QAFormat:
    """The words and turns around questions and answers.

    Args:
        use_chat_template (`bool`, *optional*):
            Whether rows are conversations; by default they are where the tokenizer has a chat template.
        prompt_template, answer_template (`str`):
            The plain form.
        system_prompt (`str`, *optional*):
            First turn of the conversational form.
        chat_template_kwargs (`dict`, *optional*):
            Handed to the chat template, for instance a `date_string`.
    """

    use_chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "Whether questions are formatted as conversations. Default: if the tokenizer has a chat template."
        },
    )
    prompt_template: str = field(
        default="Question: {question}\nAnswer:", metadata={"help": "Format of a question without a chat template."}
    )
    answer_template: str = field(
        default=" {answer}", metadata={"help": "Format of an answer without a chat template."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every question, with a chat template."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of the chat template (JSON), for instance a `date_string`."},
    )

    def __post_init__(self):
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = _json_object("chat_template_kwargs", self.chat_template_kwargs)
        for name, slot in (("prompt_template", "{question}"), ("answer_template", "{answer}")):
            if slot not in getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no place for the text; write {slot} in it.")

    def settled(self, tokenizer) -> "QAFormat":
        """The format with `use_chat_template` decided for a tokenizer."""
        if self.use_chat_template is not None:
            return self
        return replace(self, use_chat_template=tokenizer.chat_template is not None)

    def example(self, question: str, answer: str, tokenizer) -> dict[str, Any]:
        """One question and answer as a TRL prompt-completion example."""
        if not self.settled(tokenizer).use_chat_template:
            return {
                "prompt": self.prompt_template.replace("{question}", question),
                "completion": self.answer_template.replace("{answer}", answer),
            }
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        example = {
            "prompt": [*system, {"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        if self.chat_template_kwargs:
            example["chat_template_kwargs"] = self.chat_template_kwargs
        return example

    def dataset(self, rows, tokenizer, alternate: str | Sequence[str] = ()):
        """A dataset with `question` and `answer` columns as a prompt-completion dataset; any other is returned as it
        is, and so are questions about pictures.

        `question` stays beside the prompt, to say which part of it is the user's, and `topic` where there is one.
        Columns `alternate` of other answers become some of other completions.
        """
        columns = set(rows.column_names)
        if not {"question", "answer"} <= columns or columns & {"input_ids", "image"}:
            return rows
        others = [name for name in ([alternate] if isinstance(alternate, str) else alternate) if name in columns]
        check_strings(rows, ("question", "answer", *others), "the questions and answers")

        def example(row) -> dict[str, Any]:
            found = self.example(row["question"], row["answer"], tokenizer)
            return found | {name: self.example(row["question"], row[name], tokenizer)["completion"] for name in others}

        return mapped(
            rows,
            example,
            remove_columns=[name for name in rows.column_names if name not in ("question", "topic")],
            desc="Writing questions as prompts",
        )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is no JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f'{name}={text!r}; give a JSON object such as \'{{"date_string": "10 Apr 2025"}}\'.')
    return value
