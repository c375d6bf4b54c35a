# SPDX-License-Identifier: Apache-2.0
"""MUSE (Shi et al. 2024, https://huggingface.co/papers/2407.06460): VerbMem and KnowMem, of any checkpoint.

PrivLeak is in `muse_privleak.py`, the files and Hub sets in `muse_data.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...data.formats import encode_prompt
from ..generation import generate_answers
from ..overlap import rouge
from ..result import MetricResult


KNOWMEM_TOKENS = 32
VERBMEM_TOKENS = 128
# A model that goes on with the pattern writes questions of its own; the answer ends before them.
KNOWMEM_STOP = ("\n\n", "\nQuestion", "Question:")


def knowmem_prompt(question: str, examples: Sequence[Mapping[str, str]]) -> str:
    """The published prompt, byte for byte: solved examples, then the question, with a space after `Answer:`.

    Args:
        question (`str`):
            What is asked.
        examples (`Sequence[Mapping]`):
            `question` and `answer` of each example in context; MUSE has ten.
    """
    shots = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in examples)
    return f"{shots}Question: {question}\nAnswer: "


def verbmem_reference(continuation: str, tokenizer: Any, max_new_tokens: int = VERBMEM_TOKENS) -> str:
    """The true continuation as far as it is compared: its first `max_new_tokens` tokens, BOS among them, as published
    (so 127 tokens of text where the tokenizer sets BOS)."""
    return tokenizer.decode(tokenizer(continuation)["input_ids"][:max_new_tokens], skip_special_tokens=True)


def knowmem(
    model: torch.nn.Module,
    tokenizer: Any,
    rows: Sequence[Mapping[str, str]],
    examples: Sequence[Mapping[str, str]],
    *,
    role: str = "forget",
    max_new_tokens: int = KNOWMEM_TOKENS,
    measure: str = "f1",
    batch_size: int = 32,
    accelerator: Any = None,
    progress: bool = True,
) -> MetricResult:
    """Knowledge memorization: ROUGE-L F1 (no stemmer) of short answers under a few-shot prompt, greedy.

    The examples are computed once for all questions (see `shared_prefix.py`).

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            Any checkpoint.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        rows (`Sequence[Mapping]`):
            `question` and `answer`.
        examples (`Sequence[Mapping]`):
            The same of the examples in context.
        role (`str`):
            `"forget"`, or `"retain"` for MUSE's utility.
        max_new_tokens (`int`):
            32 in MUSE; 50 in Unlearn-Backdoor.
        measure (`str`):
            `"f1"`, what MUSE's code computes; `"recall"`, what its text says in places.
        batch_size, accelerator, progress:
            As in [`generate_answers`].

    Returns:
        `MetricResult`: value in [0, 1] (MUSE's tables show it times 100).
    """
    check_columns("knowmem", rows, ("question", "answer"))
    check_columns("knowmem examples", examples, ("question", "answer"))
    prompts = [encode_prompt({"prompt": knowmem_prompt(row["question"], examples)}, tokenizer) for row in rows]
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        stop=KNOWMEM_STOP,
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
        desc=f"KnowMem, {role}",
    )
    return knowmem_result(answers, [row["answer"] for row in rows], role, len(examples), max_new_tokens, measure)


def knowmem_result(
    answers: Sequence[str | None],
    references: Sequence[str],
    role: str,
    shots: int,
    max_new_tokens: int = KNOWMEM_TOKENS,
    measure: str = "f1",
) -> MetricResult:
    """KnowMem of answers that are generated already."""
    return _named("knowmem", rouge(answers, references, role, measure=measure, stem=False),
                  f"{shots}-shot, {max_new_tokens} new tokens")  # fmt: skip


def verbmem(
    model: torch.nn.Module,
    tokenizer: Any,
    rows: Sequence[Mapping[str, str]],
    *,
    role: str = "forget",
    max_new_tokens: int = VERBMEM_TOKENS,
    measure: str = "f1",
    batch_size: int = 32,
    accelerator: Any = None,
    progress: bool = True,
) -> MetricResult:
    """Verbatim memorization: ROUGE-L F1 (no stemmer) of the greedy continuation of a passage with the true one.

    Args:
        model, tokenizer, role, batch_size, accelerator, progress:
            As in [`knowmem`].
        rows (`Sequence[Mapping]`):
            `prompt`, the beginning of a passage, and `gt`, how it goes on.
        max_new_tokens (`int`):
            Tokens generated, and compared.
        measure (`str`):
            `"f1"` or `"recall"`.

    Returns:
        `MetricResult`: value in [0, 1].
    """
    check_columns("verbmem", rows, ("prompt", "gt"))
    answers = generate_answers(
        model,
        tokenizer,
        [encode_prompt({"prompt": row["prompt"]}, tokenizer) for row in rows],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
        desc=f"VerbMem, {role}",
    )
    references = [verbmem_reference(row["gt"], tokenizer, max_new_tokens) for row in rows]
    return verbmem_result(answers, references, role, max_new_tokens, measure)


def verbmem_result(
    answers: Sequence[str | None],
    references: Sequence[str],
    role: str,
    max_new_tokens: int = VERBMEM_TOKENS,
    measure: str = "f1",
) -> MetricResult:
    """VerbMem of continuations that are generated already; references from [`verbmem_reference`]."""
    return _named("verbmem", rouge(answers, references, role, measure=measure, stem=False),
                  f"{max_new_tokens} new tokens")  # fmt: skip


def check_columns(name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Refuses rows without the texts that a metric reads.

    Raises:
        `ValueError`: for no rows, a missing column, or a value that is no text.
    """
    if not len(rows):
        raise ValueError(f"There are no rows of {name}. Give at least one with {' and '.join(columns)}.")
    for i, row in enumerate(rows):
        wrong = [column for column in columns if not isinstance(row.get(column), str)]
        if wrong:
            raise ValueError(
                f"Row {i} of {name} has the columns {sorted(row)}; each row needs the texts {' and '.join(columns)}."
            )


def _named(name: str, result: MetricResult, how: str) -> MetricResult:
    return replace(result, name=name, variant=f"{result.variant}, {how}")
