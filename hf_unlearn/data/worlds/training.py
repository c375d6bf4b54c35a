# SPDX-License-Identifier: Apache-2.0
"""How the models of every world are trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .settings import WorldSettings


def train_steps(
    model: PreTrainedModel, loss: Callable[[], torch.Tensor], config: WorldSettings, advance: Callable[[], object]
) -> None:
    """
    Train `model` for `config.steps` steps: AdamW with a warm-up and a cosine decay to zero.

    Args:
        model (`PreTrainedModel`):
            Trained in place and left in evaluation.
        loss (`Callable`):
            The loss of the next batch.
        config (`WorldSettings`):
            Its `steps` and `learning_rate`.
        advance (`Callable`):
            Called after each step.
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.steps // 10, config.steps)
    model.train()
    for _ in range(config.steps):
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        advance()
    model.eval()


@contextmanager
def one_thread():
    """Same sums in the same order everywhere; and on a busy machine two threads are several times slower than one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
