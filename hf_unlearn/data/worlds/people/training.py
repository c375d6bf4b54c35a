# SPDX-License-Identifier: Apache-2.0
"""What the models of a world of people are trained on, and what they know."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...collator import RoleCollator
from ...formats import IGNORE_INDEX, encode
from ...qa import QAFormat
from .config import WorldConfig
from .corpus import Corpus
from .tokenizer import MAX_LENGTH


if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = QAFormat(use_chat_template=True)


def encode_corpus(corpus: Corpus, sets: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> list[list[dict]]:
    """
    The facts of `sets` and the general sentences, each as the forms of which one is trained at a time.

    A fact is asked in one of its trained forms, drawn anew in each epoch: without that variety the model learns
    sentences rather than facts and cannot answer a question in other words.
    """
    facts = [
        [encode(CHAT.example(question, row["answer"], tokenizer), tokenizer) for question in questions]
        for name in sets
        for row, questions in zip(corpus.sets[name], corpus.trained_questions[name], strict=True)
    ]
    return facts + [[encode(row, tokenizer)] for row in corpus.sets["general"]]


def measure(model: LlamaForCausalLM, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """
    Fraction of the answers a model reproduces exactly.

    Computed from one teacher-forced pass: if every token of the answer and the EOS after it is the most likely one,
    greedy generation writes exactly that answer, and the other way round.

    Returns:
        `dict[str, float]`: by set; `forget_paraphrased` is asked in the form no model was trained on.
    """
    return {
        name + suffix: _exact_match(model, corpus.sets[name], key, tokenizer)
        for name in ("forget", "retain", "holdout")
        for suffix, key in {"": "question", "_paraphrased": "paraphrased_question"}.items()
    }


def initial_model(tokenizer: PreTrainedTokenizerFast, seed: int, config: WorldConfig) -> LlamaForCausalLM:
    """The weights that all models of a world start from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama)


def losses(
    model: LlamaForCausalLM, rows: list[list[dict]], pad: int, seed: int, config: WorldConfig
) -> Iterator[torch.Tensor]:
    """Endless epochs over rows, each in a new order and with a new wording of each row: the losses of its batches."""
    import torch

    rng = random.Random(f"hf_unlearn world batches {seed}")
    collate = RoleCollator(pad)
    queue: list[dict] = []
    while True:
        while len(queue) < config.batch_size:
            queue += [rng.choice(forms) for forms in rng.sample(rows, len(rows))]
        batch, queue = collate(queue[: config.batch_size]), queue[config.batch_size :]
        # Right padding lies in the future of every token that is trained, so causality alone hides it
        hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        trained = labels != IGNORE_INDEX
        yield torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[trained])


def _exact_match(
    model: LlamaForCausalLM, rows: list[dict], question: str, tokenizer: PreTrainedTokenizerFast
) -> float:
    import torch

    collate = RoleCollator(tokenizer.pad_token_id)
    encoded = [encode(CHAT.example(row[question], row["answer"], tokenizer), tokenizer) for row in rows]
    right = 0
    for start in range(0, len(encoded), 64):
        batch = collate(encoded[start : start + 64])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        hit = (logits[:, :-1].argmax(-1) == labels) | (labels == IGNORE_INDEX)
        right += hit.all(-1).sum().item()
    return right / len(rows)
