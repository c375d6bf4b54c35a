# SPDX-License-Identifier: Apache-2.0
"""The chat template as one row uses it: what it renders, and in which form it marks what the assistant says."""

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .messages import Message, checked_messages, with_string_arguments, without_empty


logger = logging.getLogger(__name__)

# Arguments of `apply_chat_template` that are no variables of a template: we set them.
RESERVED = (
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "padding",
    "truncation",
    "max_length",
    "tokenizer_kwargs",
)
# Stands in a text to find it again in what is rendered; of no alphabet, and no white space that a template strips.
MARK = "\ue0fa"

Spans = list[tuple[int, int]]
# What was found out about a template: its training form, and the kinds of content that it reads.
_training_templates: dict[str, str | None] = {}
_readers: dict[str, tuple[bool, bool]] = {}


class Chat:
    """The chat template as a row uses it.

    Args:
        example (`Mapping`):
            A row; `tools` (a list, or JSON) and `chat_template_kwargs` are read.
        tokenizer (`PreTrainedTokenizerBase`):
            Has the template.

    Raises:
        `ValueError`: if there is no template, or the row's settings are of the wrong kind.
    """

    def __init__(self, example: Mapping[str, Any], tokenizer):
        settings = _settings(example)
        if tokenizer.chat_template is None and "chat_template" not in settings:
            raise ValueError(
                "The rows are conversations, but the tokenizer has no chat template. Set `tokenizer.chat_template` "
                "(see `trl.clone_chat_template`), or give `prompt` and `completion` as strings."
            )
        self.tokenizer = tokenizer
        self.tools = _tools(settings.pop("tools", example.get("tools")))
        self.template = settings.pop("chat_template", None) or tokenizer.get_chat_template(None, self.tools)
        self.settings = settings

    def messages(self, given: Any, column: str) -> list[Message]:
        """The messages of a column, checked, with content of a kind that the template reads."""
        messages = checked_messages(given, column)
        strings, blocks = self._reads()
        for message in messages:
            content = message.get("content")
            if isinstance(content, list) and not blocks:
                message["content"] = "".join(block["text"] for block in content)
            elif isinstance(content, str) and blocks and not strings:
                message["content"] = [{"type": "text", "text": content}]
        return messages

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The text of a conversation, with the generation prompt behind it if asked for."""
        return self._render(messages, self.template, generation)[0]

    def marked_spans(self, messages: Sequence[Message], template: str) -> tuple[str, Spans]:
        """The text, and where in it the template's `{% generation %}` markers stand."""
        return self._render(messages, template, spans=True)

    def _render(self, messages, template: str, generation: bool = False, spans: bool = False) -> tuple[str, Spans]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            raise ValueError("The conversation is empty. Give at least one message.")
        for form in (list, with_string_arguments):
            try:
                texts, found = render_jinja_template(
                    conversations=[form(messages)],
                    tools=self.tools,
                    chat_template=template,
                    return_assistant_tokens_mask=spans,
                    add_generation_prompt=generation,
                    **{**self.tokenizer.special_tokens_map, **self.settings},
                )
                return texts[0], (found[0] if spans else [])
            except TemplateError as error:
                told = " ".join(str(error).split())
                roles = [message["role"] for message in messages]
                raise ValueError(f"The chat template refuses a conversation with the roles {roles}: {told}") from error
            except TypeError as error:
                # Some templates take a tool call's arguments as text (transformers#45419).
                failed = error
        raise ValueError(f"The chat template cannot render the conversation: {failed}") from failed

    def _reads(self) -> tuple[bool, bool]:
        """Whether the template renders content that is a string, and content that is a list of blocks."""
        if self.template not in _readers:

            def kept(content) -> bool:
                try:
                    text = self.render([{"role": "user", "content": content}])
                except ValueError:
                    return False
                return MARK in text and "'type'" not in text and '"type"' not in text

            _readers[self.template] = kept(MARK), kept([{"type": "text", "text": MARK}])
        return _readers[self.template]

    @property
    def training_template(self) -> str | None:
        """The template with `{% generation %}` markers, if there is one."""
        if self.template not in _training_templates:
            _training_templates[self.template] = self._find_training_template()
        return _training_templates[self.template]

    def training_form(self, prompt: Sequence[Message]) -> "Chat | None":
        """The same with the training template, where that is another and renders the prompt no other way."""
        form = copy.copy(self)
        form.template = self.training_template
        if form.template in (None, self.template):
            return None
        prompts = (tried(lambda chat=chat: chat.render(prompt, generation=True)) for chat in (self, form))
        return form if next(prompts) == next(prompts) else None

    def _find_training_template(self) -> str | None:
        from jinja2 import TemplateError
        from trl.chat_template_utils import (
            get_training_chat_template,
            has_generation_markers,
            is_chat_template_stop_token_trained,
        )

        if has_generation_markers(self.template):
            if not is_chat_template_stop_token_trained(self.tokenizer, self.template):
                logger.warning(
                    "The chat template has the token that ends an assistant's turn outside of its {% generation %} "
                    "markers, so that it is not trained. Put it inside."
                )
            return self.template
        if self.template != self.tokenizer.get_chat_template():
            return None
        try:
            return get_training_chat_template(self.tokenizer)
        except (ValueError, TypeError, TemplateError):
            # TRL does not know the template.
            return None


def tried(render: Callable[[], str | None]) -> str | None:
    try:
        return render()
    except ValueError:
        return None


# A row's settings


def _settings(example: Mapping[str, Any]) -> dict[str, Any]:
    settings = example.get("chat_template_kwargs") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"`chat_template_kwargs` is a {type(settings).__name__} ({settings!r:.80}); give a dict.")
    if taken := [name for name in RESERVED if name in settings]:
        raise ValueError(
            f"`chat_template_kwargs` has {', '.join(taken)}, which training and audits set. Leave it out."
        )
    return without_empty(settings)


def _tools(tools: Any) -> list | None:
    """Tools as the template takes them; TRL's datasets may hold them as JSON."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"`tools` is text that is no JSON ({error}): {tools[:80]!r}.") from None
    if not tools:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) or callable(tool) for tool in tools):
        raise ValueError(f"`tools` is {tools!r:.80}; give a list of JSON schemas of functions, or that list as JSON.")
    return [without_empty(tool) if isinstance(tool, Mapping) else tool for tool in tools]
