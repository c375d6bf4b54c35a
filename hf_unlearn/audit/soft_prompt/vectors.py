# SPDX-License-Identifier: Apache-2.0
"""Vectors in a prompt: tokens that stand for them, and the hook that puts them there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...data.collator import RoleCollator
from ...data.conversations import common_prefix
from ...data.formats import encode_prompt
from ...data.qa import QAFormat
from ..batching import device_of
from ..scoring import answer_loss


# Words behind a question: where the prompts with and without them part, the question ends.
PROBES = (" x", " 7", "x", "7")


def reserved_id(rows: Sequence[Mapping[str, Sequence[int]]], size: int) -> int:
    """A token that stands in none of the rows.

    Args:
        rows (`Sequence[dict]`): all that will be scored or trained on.
        size (`int`): tokens that the model knows.

    Raises:
        `ValueError`: if there is none.
    """
    used = {token for row in rows for token in row["input_ids"]}
    free = next((token for token in range(size - 1, -1, -1) if token not in used), None)
    if free is None:
        raise ValueError(f"The rows use all {size} tokens of the model, and one is required to mark the soft prompt.")
    return free


def place_in(question: str, place: str, qa: QAFormat, tokenizer: Any) -> int:
    """How many tokens of a question's prompt stand before the vectors.

    Args:
        question (`str`): as it is asked.
        place (`str`): `"start"` or `"end"`.
        qa ([`QAFormat`]), tokenizer: as the rows are encoded.
    """
    ids = encode_prompt(qa.example(question, "", tokenizer), tokenizer)
    if place == "start":
        return int(bool(ids) and ids[0] == tokenizer.bos_token_id)
    others = [encode_prompt(qa.example(question + words, "", tokenizer), tokenizer) for words in PROBES]
    return max(common_prefix(ids, other) for other in others)


def with_marks(row: Mapping[str, Sequence[int]], at: int, mark: int, n: int) -> dict[str, list[int]]:
    """A row with `n` marks before its token `at`."""
    ids, labels = row["input_ids"], row["labels"]
    return {
        "input_ids": [*ids[:at], *[mark] * n, *ids[at:]],
        "labels": [*labels[:at], *[-100] * n, *labels[at:]],
    }


@contextmanager
def in_place_of(model: torch.nn.Module, mark: int, vectors: torch.Tensor) -> Iterator[None]:
    """The model reads vectors where a row has marks, the first one at the first mark. Its embeddings stay as they
    are: a table that is tied to the head would change what is predicted.

    Args:
        model (`torch.nn.Module`): any causal language model, with an adapter or without.
        mark (`int`): the token that stands for them.
        vectors (`torch.Tensor` `[n, d]`): as the embeddings put them out; every row has `n` marks, or none.
    """

    def put(module, args, kwargs, output):
        ids = args[0] if args else kwargs["input"]
        found = ids == mark
        rows = int(found.any(1).sum())
        if not rows:
            return output
        given = vectors.to(output.device, output.dtype).repeat(rows, 1)
        return output.masked_scatter(found.unsqueeze(-1), given)

    handle = model.get_input_embeddings().register_forward_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def trained(
    model: torch.nn.Module,
    rows: Sequence[Mapping[str, Sequence[int]]],
    *,
    mark: int,
    n: int,
    learning_rate: float,
    steps: int,
    batch_size: int,
    seed: int,
    pad_token_id: int,
    on_step: Callable[[], Any] = lambda: None,
) -> torch.Tensor:
    """Vectors behind which the model gives the rows' answers: Adam on the mean negative log-likelihood of the labelled
    tokens. They begin as embeddings of random tokens, in every model of the same ones.

    Args:
        model (`torch.nn.Module`): in evaluation mode, its parameters frozen.
        rows (`Sequence[dict]`): with marks, `input_ids` and `labels`.
        mark (`int`), n (`int`): the token that stands for a vector, and how many of them a row has.
        learning_rate (`float`), steps (`int`), batch_size (`int`), seed (`int`): of training.
        pad_token_id (`int`): fills a batch.
        on_step (`Callable`): called after each.

    Returns:
        `torch.Tensor` `[n, d]`: float32.
    """
    rng, device = np.random.default_rng(seed), device_of(model)
    table = model.get_input_embeddings()
    with torch.no_grad():
        start = table(torch.from_numpy(rng.integers(0, table.num_embeddings, size=n)).to(device))
    vectors = start.detach().float().requires_grad_()
    optimizer, collate = torch.optim.Adam([vectors], lr=learning_rate), RoleCollator(pad_token_id=pad_token_id)
    order: list[int] = []
    with in_place_of(model, mark, vectors), torch.enable_grad():
        for _ in range(steps):
            while len(order) < min(batch_size, len(rows)):
                order += rng.permutation(len(rows)).tolist()
            batch, order = order[:batch_size], order[batch_size:]
            inputs = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in batch]).items()}
            (vectors.grad,) = torch.autograd.grad(answer_loss(model, inputs), [vectors])
            optimizer.step()
            on_step()
    return vectors.detach()
