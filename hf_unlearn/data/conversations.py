# SPDX-License-Identifier: Apache-2.0
"""Which characters of a rendered conversation are trained, and which tokens those are.

| rows                   | trained                                | template                                          |
|------------------------|----------------------------------------|---------------------------------------------------|
| `messages`             | every assistant turn and what ends it  | its own, or TRL's training template for it, where |
|                        |                                        | that has `{% generation %}` markers; without any, |
|                        |                                        | each boundary is checked                          |
| `prompt`, `completion` | all that follows the prompt            | its own                                           |

A row that cannot be rendered, or of which the template leaves out what is to be trained, is a `ValueError`.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .chat import MARK, Chat, Spans, tried
from .messages import Message, marked, shape_of


logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
# Beside the mark by which turns are found, which may stand in the same text.
CHECK_MARK = chr(ord(MARK) + 1)
# Shapes of rows of which a template is known to render all, and templates that were warned of.
_whole_shapes: set[tuple] = set()
_warned: set[tuple[str, str]] = set()


def conversation_tokens(example: Mapping[str, Any], tokenizer) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of a row, see [`conversation_text`]."""
    return tokens_of(*conversation_text(example, tokenizer), tokenizer)


def conversation_text(example: Mapping[str, Any], tokenizer) -> tuple[str, Spans]:
    """What is rendered of a row with `messages`, or with `prompt` and `completion` that are conversations, and the
    characters that are trained.

    Raises:
        `ValueError`: if the template refuses the row, leaves out what is to be trained, or does not show where an
            assistant's turn begins and ends.
    """
    chat = Chat(example, tokenizer)
    if example.get("messages") is not None:
        messages = chat.messages(example["messages"], "messages")
        trained = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not trained:
            roles = sorted({message["role"] for message in messages})
            raise ValueError(
                f"`messages` has no turn of the assistant, only of {roles}: there is nothing to train on."
            )
        locate = _turns
    else:
        prompt = chat.messages(example["prompt"], "prompt")
        messages = [*prompt, *chat.messages(example["completion"], "completion")]
        trained = list(range(len(prompt), len(messages)))
        locate = _completion(len(prompt))
    try:
        return _located(chat, messages, trained, locate)
    except ValueError:
        # TRL's form of a template keeps reasoning that the template itself drops, and takes arguments that it refuses.
        form = None if locate is _turns else chat.training_form(prompt)
        if form is None:
            raise
        return _located(form, messages, trained, locate)


def _located(chat: Chat, messages: list[Message], trained: list[int], locate) -> tuple[str, Spans]:
    found = locate(chat, messages)
    _check_whole(chat, messages, trained, locate)
    return found


def prompt_tokens(example: Mapping[str, Any], tokenizer) -> list[int]:
    """Tokens of a conversational `prompt` with the generation prompt, ready for generation."""
    chat = Chat(example, tokenizer)
    text = chat.render(chat.messages(example["prompt"], "prompt"), generation=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokens_of(text: str, spans: Spans, tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of a text, and labels: those tokens of which any character is in a span.

    Args:
        text (`str`): with its special tokens.
        spans (`list[tuple[int, int]]`): first character, and the one behind the last.
        tokenizer (`PreTrainedTokenizerBase`): one without offsets is asked for the tokens of what stands before.
    """
    if not tokenizer.is_fast:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        labels = [IGNORE_INDEX] * len(ids)
        for ends in spans:
            parts = (tokenizer(text[:end], add_special_tokens=False)["input_ids"] for end in ends)
            start, stop = (common_prefix(list(part), ids) for part in parts)
            labels[start:stop] = ids[start:stop]
        return ids, labels
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels, before = list(encoded["input_ids"]), [], 0
    for token, (begin, end) in zip(ids, encoded["offset_mapping"], strict=True):
        # White space alone has no width where a tokenizer trims its offsets; it begins where the last token ended.
        begin = begin if begin < end else min(before, begin)
        inside = any(end > start and begin < stop for start, stop in spans)
        labels.append(token if inside else IGNORE_INDEX)
        before = end
    return ids, labels


def common_prefix(left: Sequence, right: Sequence) -> int:
    """How many items two sequences have in common from their beginning."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


# Where the trained text stands


def _turns(chat: Chat, messages: list[Message]) -> tuple[str, Spans]:
    """Every assistant turn."""
    if template := chat.training_template:
        return chat.marked_spans(messages, template)
    text = chat.render(messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [(_start(chat, messages, i, text), _stop(chat, messages, i, text)) for i in turns]


def _start(chat: Chat, messages: list[Message], i: int, text: str) -> int:
    """Where turn `i` begins: behind the prompt that it would be generated from, or where its content stands."""
    prompt, same = (tried(lambda on=on: chat.render(messages[:i], generation=on)) for on in (True, False))
    asked = [{"role": "user", "content": "a"}]
    with_cue, without = (tried(lambda on=on: chat.render(asked, generation=on)) or "" for on in (True, False))
    cue = with_cue[common_prefix(with_cue, without) :]
    if prompt is not None and text.startswith(prompt):
        # Some templates cue the assistant behind a user's turn alone.
        cued = prompt == same and text.startswith(cue, len(prompt))
        return len(prompt) + (len(cue) if cued else 0)
    # A template whose prompt depends on what follows it: as Mistral's, with the system's words in the last user turn.
    place = _content_place(chat, messages, i, text)
    before = "" if place is None else text[:place]
    cues = [cue[:n] for n in range(1, len(cue) + 1)]
    if place is None or (cue and not any(begun.endswith(tuple(cues)) for begun in (before, before.rstrip()))):
        raise _no_boundary("begins", i)
    return place


def _stop(chat: Chat, messages: list[Message], i: int, text: str) -> int:
    """Where turn `i` ends, with what ends it."""
    alone = tried(lambda: chat.render(messages[: i + 1]))
    if alone is not None and text.startswith(alone):
        return len(alone)
    # What follows the content there and here has to be the same.
    ends = marked(messages[i], "content", MARK)
    whole, alone = (
        tried(lambda turns=turns: chat.render([*messages[:i], ends, *turns]) if ends else None)
        for turns in (messages[i + 1 :], [])
    )
    if whole and alone and whole.count(MARK) == alone.count(MARK) == 1:
        behind, ending = whole.partition(MARK)[2], alone.partition(MARK)[2]
        if text.endswith(behind) and behind.startswith(ending):
            return len(text) - len(behind) + len(ending)
    raise _no_boundary("ends", i)


def _content_place(chat: Chat, messages: list[Message], i: int, text: str) -> int | None:
    """The character at which the content of message `i` begins, if its beginning is rendered."""
    changed = marked(messages[i], "content", MARK, front=True)
    other = tried(lambda: chat.render([*messages[:i], changed, *messages[i + 1 :]])) if changed else None
    if other is None or other.count(MARK) != 1:
        return None
    place = other.index(MARK)
    return place if text[:place] == other[:place] else None


def _completion(count: int) -> Callable[[Chat, list[Message]], tuple[str, Spans]]:
    """All that follows a prompt of `count` messages."""

    def locate(chat: Chat, messages: list[Message]) -> tuple[str, Spans]:
        text, prompt = chat.render(messages), chat.render(messages[:count], generation=True)
        if text.startswith(prompt):
            return text, [(len(prompt), len(text))]
        # As TRL: a generation prompt may hold what an answer does not begin with (`<think>`). The messages may not
        # differ.
        place = _content_place(chat, messages, count, text)
        start = common_prefix(prompt, text) if place is None else min(common_prefix(prompt, text), place)
        asked = tried(lambda: chat.render(messages[:count]))
        if asked is None or not text.startswith(asked) or start < len(asked):
            raise ValueError(
                "The chat template renders the prompt otherwise when the completion follows it, so that the beginning "
                "of the completion is not found. Give a template that does not (`tokenizer.chat_template`), or "
                "`prompt` and `completion` as strings."
            )
        _warn_of_prompt(chat, prompt[start:])
        return text, [(start, len(text))]

    return locate


def _warn_of_prompt(chat: Chat, lacking: str) -> None:
    _warn(
        chat,
        f"The chat template ends the prompt of a generation with {lacking!r}, which the rows that are trained on do "
        "not have: answers are trained in another context than they are generated in. If the template has a switch "
        "for it (such as `enable_thinking`), set it in `chat_template_kwargs`.",
    )


def _warn(chat: Chat, told: str) -> None:
    """Says something of a template once."""
    if (chat.template, told[:40]) not in _warned:
        _warned.add((chat.template, told[:40]))
        logger.warning(told)


def _no_boundary(what: str, i: int) -> ValueError:
    return ValueError(
        f"The chat template does not show where message {i} (assistant) {what}: it renders earlier messages otherwise "
        "when others follow. Put {% generation %} markers into the template (`tokenizer.chat_template`; TRL's "
        "`get_training_chat_template` has them for many models), or give the row as `prompt` and `completion`."
    )


# What a template leaves out


def _check_whole(chat: Chat, messages: list[Message], trained: list[int], locate) -> None:
    """Refuses rows of which the template leaves something out, found by changing it: once for each shape of rows."""
    shape = (
        chat.template,
        bool(chat.tools),
        repr(chat.settings),
        tuple(trained),
        shape_of(messages),
        locate is _turns,
    )
    if shape in _whole_shapes:
        return
    if chat.tools and not _reads_tools(chat, messages):
        _warn(chat, "The chat template renders no `tools`: the rows are trained on as if they had none.")
    if "strftime_now" in chat.template and "date_string" not in chat.settings:
        _warn(
            chat,
            "The chat template may write today's date into conversations: rows, audits and caches of another day "
            "differ. If it has a variable for the date (such as `date_string`), set it in `chat_template_kwargs`.",
        )
    for i, message in enumerate(messages):
        # Reasoning of earlier turns is left out of prompts on purpose.
        for field in ("content", "tool_calls", *(("reasoning",) if i in trained else ())):
            changed = marked(message, field, CHECK_MARK)
            if changed is None:
                continue
            try:
                text, spans = locate(chat, [*messages[:i], changed, *messages[i + 1 :]])
            except ValueError:
                continue
            seen = "".join(text[start:stop] for start, stop in spans) if i in trained else text
            if CHECK_MARK not in seen:
                raise ValueError(
                    f"The chat template leaves out the {field.replace('_', ' ')} of message {i} ({message['role']}). "
                    "Take it out of the row, or give the tokenizer a template that renders it."
                )
    _whole_shapes.add(shape)


def _reads_tools(chat: Chat, messages: list[Message]) -> bool:
    without = copy.copy(chat)
    without.tools = None
    return chat.render(messages) != without.render(messages)
