# SPDX-License-Identifier: Apache-2.0
"""Answers to prompts of one's own: nothing is scored, they are there to be read before and after."""

from collections.abc import Sequence
from typing import Any

from ..data.formats import encode_prompt
from ..data.qa import QAFormat
from .generation import generate_answers


SET = "prompts"


def answer_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], qa: QAFormat, **options: Any
) -> list[dict[str, str]]:
    """What a model answers to prompts, as an audit shows answers; what would be right is not known.

    Args:
        model, tokenizer:
            As in [`~hf_unlearn.audit.audit_model`].
        prompts (`Sequence[str]`):
            Put to the model as questions are.
        qa ([`~hf_unlearn.data.qa.QAFormat`]):
            The form of questions.
        options:
            Of [`~hf_unlearn.audit.generate_answers`].
    """
    if not prompts:
        return []
    encoded = [encode_prompt(qa.example(prompt, "", tokenizer), tokenizer) for prompt in prompts]
    texts = generate_answers(model, tokenizer, encoded, desc="Answering prompts", **options)
    asked = zip(prompts, texts, strict=True)
    return [{"set": SET, "question": prompt, "expected": "", "answer": text} for prompt, text in asked]
