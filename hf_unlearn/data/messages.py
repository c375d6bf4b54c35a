# SPDX-License-Identifier: Apache-2.0
"""Messages of a conversation: from what datasets hold to what chat templates read."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import check_text, told


Message = dict[str, Any]

# ShareGPT's names of who speaks.
ROLES = {"human": "user", "gpt": "assistant"}
REASONING = ("reasoning_content", "thinking", "reasoning")


def checked_messages(given: Any, column: str) -> list[Message]:
    """Messages of their own, without keys that have no value; ShareGPT's `from` and `value` are read too.

    Args:
        given:
            A list of dicts with `role`, and `content` (text, or blocks of text) or `tool_calls`.
        column (`str`):
            Where they stand; used in messages.

    Raises:
        `ValueError`: naming the message that is not of this form.
    """
    from trl.data_utils import maybe_convert_to_chatml

    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"`{column}` is {told(given)}; give a list of messages with `role` and `content`.")
    for i, message in enumerate(given):
        if not isinstance(message, Mapping):
            raise ValueError(f"`{column}` has {told(message)} as message {i}; give a dict with `role` and `content`.")
    messages = maybe_convert_to_chatml({"messages": [without_empty(message) for message in given]})["messages"]
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise ValueError(f"Message {i} of `{column}` has no `role` (only {sorted(message)}).")
        message["role"] = ROLES.get(message["role"], message["role"])
        _check_content(message, i, column)
        _read_arguments(message)
    return messages


def as_chatml(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with `conversations`, ShareGPT's column, under the name `messages`."""
    if example.get("conversations") is None or example.get("messages") is not None:
        return example
    return {"messages" if name == "conversations" else name: value for name, value in example.items()}


def without_empty(value: Any) -> Any:
    """A copy without keys that have no value: tables give every dict of a column the keys of all."""
    if isinstance(value, Mapping):
        return {key: without_empty(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_empty(item) for item in value]
    return value


def says_nothing(message: Message) -> bool:
    """Whether a message has neither text nor tool calls nor reasoning."""
    if message.get("tool_calls") or any(str(message.get(name) or "").strip() for name in REASONING):
        return False
    return not text_of(message).strip()


def text_of(message: Message) -> str:
    """The text of a message's content."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content) if isinstance(content, list) else ""


def with_text(message: Message, change) -> Message:
    """The message with its text, or the text of its first block, changed by a function."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": change(content)}
    first, *others = content
    return {**message, "content": [{**first, "text": change(first["text"])}, *others]}


def with_string_arguments(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as JSON text."""
    changed = copy.deepcopy(list(messages))
    for message in changed:
        for call in _functions(message):
            if isinstance(call.get("arguments"), Mapping):
                call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return changed


def marked(message: Message, field: str, mark: str, front: bool = False) -> Message | None:
    """The message with a mark in its content, its reasoning or the name of its tool calls; `None` where there is none.

    A mark stands at the end, or in front; in reasoning that is part of the content, before `</think>`.
    """
    text = text_of(message)
    if field == "tool_calls":
        changed = copy.deepcopy(message)
        for call in _functions(changed):
            call["name"] = f"{call.get('name', '')}{mark}"
        return changed if message.get("tool_calls") else None
    if field == "reasoning":
        if "</think>" in text:
            return {**message, "content": _like(message, text.replace("</think>", f"{mark}</think>", 1))}
        name = next((name for name in REASONING if str(message.get(name) or "").strip()), None)
        return {**message, name: f"{message[name]}{mark}"} if name else None
    if not text.strip():
        return None
    return {**message, "content": _like(message, mark + text if front else text + mark)}


def shape_of(messages: Sequence[Message]) -> tuple:
    """What a template's choices depend on: who speaks, and by which keys; not what is said."""
    return tuple(
        (
            message["role"],
            tuple(sorted(key for key, value in message.items() if value)),
            isinstance(message.get("content"), list),
            "</think>" in text_of(message),
            len(message.get("tool_calls") or ()),
        )
        for message in messages
    )


def _like(message: Message, text: str) -> Any:
    return text if not isinstance(message.get("content"), list) else [{"type": "text", "text": text}]


def _check_content(message: Message, i: int, column: str) -> None:
    content = message.get("content")
    where = f"The content of message {i} of `{column}`"
    if isinstance(content, str):
        check_text(content, where)
        return
    if content is None:
        if not any(message.get(name) for name in ("tool_calls", *REASONING)):
            raise ValueError(f"Message {i} of `{column}` ({message['role']}) has no `content`; give its text.")
        return
    if isinstance(content, Mapping):
        return
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise ValueError(f"{where} is {told(content)}; give text, or a list of text blocks.")
    for block in content:
        if not isinstance(block.get("text"), str) or block.get("type", "text") != "text":
            raise ValueError(
                f"{where} has a block of type {block.get('type')!r}. Give blocks of text, "
                "{'type': 'text', 'text': ...}: language models are trained on text alone here."
            )
        check_text(block["text"], where)


def _read_arguments(message: Message) -> None:
    """Arguments of tool calls as objects, the form that transformers documents; OpenAI's are JSON text."""
    for call in _functions(message):
        if isinstance(call.get("arguments"), str):
            try:
                call["arguments"] = json.loads(call["arguments"])
            except json.JSONDecodeError:
                # The template's own matter.
                pass


def _functions(message: Message) -> list[dict]:
    calls = message.get("tool_calls") or []
    calls = calls if isinstance(calls, list) else []
    return [call.get("function", call) for call in calls if isinstance(call, dict)]
