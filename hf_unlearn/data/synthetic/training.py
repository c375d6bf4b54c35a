# SPDX-License-Identifier: Apache-2.0
"""Training of the two models of a world, and the proof that they know what they should."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..collator import RoleCollator
from ..formats import IGNORE_INDEX, encode
from ..qa import QAFormat
from .config import WorldConfig
from .corpus import Corpus
from .tokenizer import MAX_LENGTH


if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Which sets a model is trained on, besides the general sentences.
KINDS = {"target": ("forget", "retain"), "retrained": ("retain",)}
CHAT = QAFormat(use_chat_template=True)


def train_models(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    config: WorldConfig,
    advance: Callable[[str], None],
) -> dict[str, LlamaForCausalLM]:
    """
    Train the target and the retrained model from the same start and for the same number of steps.

    A fact is asked in one of its trained forms, drawn anew in each epoch: without that variety the model learns
    sentences rather than facts and cannot answer a question in other words.

    Args:
        corpus (`Corpus`), tokenizer (`PreTrainedTokenizerFast`), seed (`int`), config (`WorldConfig`):
            The world.
        advance (`Callable`):
            Called with the model's name after each step.

    Returns:
        `dict[str, LlamaForCausalLM]`: `target` and `retrained`.
    """
    with one_thread():
        start = initial_model(tokenizer, seed, config)
        general = [[encode(row, tokenizer)] for row in corpus.sets["general"]]
        facts = {name: _encode_facts(corpus, name, tokenizer) for name in ("forget", "retain")}
        models = {}
        for kind, sets in KINDS.items():
            rows = [row for name in sets for row in facts[name]] + general
            models[kind] = copy.deepcopy(start)
            batches = endless_batches(rows, seed, config)
            train_steps(models[kind], batches, tokenizer.pad_token_id, config, lambda kind=kind: advance(kind))
    return models


def measure(
    models: dict[str, LlamaForCausalLM], corpus: Corpus, tokenizer: PreTrainedTokenizerFast
) -> dict[str, dict[str, float]]:
    """
    Fraction of the answers each model reproduces exactly.

    Computed from one teacher-forced pass: if every token of the answer and the EOS after it is the most likely one,
    greedy generation writes exactly that answer, and the other way round.

    Returns:
        `dict[str, dict[str, float]]`: by model, then by set; `forget_paraphrased` is asked in the form no model was
        trained on.
    """
    questions = {"": "question", "_paraphrased": "paraphrased_question"}
    with one_thread():
        return {
            kind: {
                name + suffix: _exact_match(model, corpus.sets[name], key, tokenizer)
                for name in ("forget", "retain", "holdout")
                for suffix, key in questions.items()
            }
            for kind, model in models.items()
        }


def check(exact_match: dict[str, dict[str, float]], config: WorldConfig) -> None:
    """Raise `RuntimeError` if the models do not know what they should, or know what they should not."""
    problems = [
        f"the {kind} model knows {exact_match[kind][name]:.1%} of the {name} answers (at least {config.min_known:.1%})"
        for kind, sets in KINDS.items()
        for name in sets
        if exact_match[kind][name] < config.min_known
    ]
    if exact_match["retrained"]["forget"] > config.max_unseen:
        problems.append(
            f"the retrained model knows {exact_match['retrained']['forget']:.1%} of the forget answers "
            f"(at most {config.max_unseen:.1%})"
        )
    if problems:
        raise RuntimeError(
            f"The embedded world is unusable and was not cached: {'; '.join(problems)}. "
            "Try another seed or a WorldConfig with more steps."
        )


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


def _encode_facts(corpus: Corpus, name: str, tokenizer: PreTrainedTokenizerFast) -> list[list[dict]]:
    return [
        [encode(CHAT.example(question, row["answer"], tokenizer), tokenizer) for question in questions]
        for row, questions in zip(corpus.sets[name], corpus.trained_questions[name], strict=True)
    ]


def endless_batches(rows: list[list[dict]], seed: int, config: WorldConfig) -> Iterator[list[dict]]:
    """Endless epochs, each in a new order and with a new wording of each row."""
    rng = random.Random(f"hf_unlearn world batches {seed}")
    queue: list[dict] = []
    while True:
        while len(queue) < config.batch_size:
            queue += [rng.choice(forms) for forms in rng.sample(rows, len(rows))]
        yield queue[: config.batch_size]
        queue = queue[config.batch_size :]


def train_steps(
    model: LlamaForCausalLM, batches: Iterator[list[dict]], pad: int, config: WorldConfig, advance: Callable[[], None]
) -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    collate = RoleCollator(pad)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.steps // 10, config.steps)
    model.train()
    for _ in range(config.steps):
        batch = collate(next(batches))
        # Right padding lies in the future of every token that is trained, so causality alone hides it
        hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        trained = labels != IGNORE_INDEX
        torch.nn.functional.cross_entropy(model.lm_head(hidden[trained]), labels[trained]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        advance()
    model.eval()


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


@contextmanager
def one_thread():
    # Same sums in the same order everywhere; and on a busy machine two threads are several times slower than one
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
