# SPDX-License-Identifier: Apache-2.0
"""A short fine-tuning of a model that is afterwards as it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ...data.collator import RoleCollator
from ...models.wrappers import ATTRIBUTE, wrapper_of
from ..as_saved import as_saved
from ..batching import device_of
from ..model_checks import UnsoundModelError
from ..scoring import answer_loss


@dataclass(frozen=True)
class Plan:
    """One run of the attack.

    Args:
        learning_rate (`float`): of AdamW without weight decay; constant after `warmup_steps`.
        seed (`int`): of the order of rows and the adapter's start.
        steps, batch_size, warmup_steps (`int`): lengths.
        adapter (`str`): `"lora"` or `"none"`.
        lora_r, lora_alpha (`int`): of the adapter.
    """

    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    warmup_steps: int
    adapter: str
    lora_r: int
    lora_alpha: int


@contextmanager
def trainable(model: nn.Module, plan: Plan) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """The model with what is to be trained of it: all its weights, or a fresh adapter. Afterwards, and after an
    exception, weights, modes, what requires a gradient and modules are as they were. A wrapper's own weights stay."""
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with as_saved(model):  # Without dropout: the attack is the same in all models.
        try:
            for parameter, _, _ in flags:
                parameter.grad = None
            if plan.adapter == "lora":
                with _adapter(model, plan) as adapted:
                    yield adapted, [parameter for parameter in adapted.parameters() if parameter.requires_grad]
            else:
                with _all_weights(model) as parameters:
                    yield model, parameters
        finally:
            for parameter, flag, gradient in flags:
                parameter.requires_grad_(flag)
                parameter.grad = gradient


@contextmanager
def _adapter(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        target_modules="all-linear",
        exclude_modules=None if wrapper_of(model) is None else rf"(.*\.)?{ATTRIBUTE}\..*",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        adapted = get_peft_model(model, config)
    try:
        yield adapted
    finally:
        adapted.unload()


@contextmanager
def _all_weights(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    wrapper = wrapper_of(model)
    left = set() if wrapper is None else {id(parameter) for parameter in wrapper.parameters()}
    parameters = [p for p in model.parameters() if id(p) not in left and p.is_floating_point()]
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in left and parameter.is_floating_point())
        yield parameters
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def finetune(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    rows: Sequence[Mapping[str, Any]],
    plan: Plan,
    evaluate: Callable[[int, int], None],
    at: Sequence[int],
    pad_token_id: int = 0,
    progress: bool = True,
    desc: str = "Relearning",
) -> int | None:
    """Trains on the labelled tokens of rows.

    Weights of half precision are trained as float32 copies and rounded after each step: small steps would be lost in
    them otherwise.

    Args:
        model (`nn.Module`), parameters (`Sequence`): of [`trainable`].
        rows (`Sequence[dict]`): `input_ids` and `labels`.
        plan ([`Plan`]): how.
        evaluate (`Callable`): called with the step and the number of values that training changed.
        at (`Sequence[int]`): after which steps.

    Returns:
        `int`, *optional*: the step at which a loss, a weight or all answers were not finite any more; nothing is
        evaluated after.
    """
    start = [parameter.detach().clone() for parameter in parameters]
    held = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]
    optimizer = torch.optim.AdamW(held, lr=plan.learning_rate, weight_decay=0.0, fused=True)
    collate, batches, device = RoleCollator(pad_token_id=pad_token_id), _batches(len(rows), plan), device_of(model)
    for step in tqdm(range(1, plan.steps + 1), desc=desc, unit="step", disable=not progress, leave=False):
        inputs = {k: v.to(device) for k, v in collate([rows[i] for i in next(batches)]).items()}
        loss = answer_loss(model, inputs)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, step / max(plan.warmup_steps, 1))
        _step(optimizer, parameters, held)
        if not (torch.isfinite(loss) and all(torch.isfinite(parameter).all() for parameter in parameters)):
            return step
        if step in at:
            pairs = zip(parameters, start, strict=True)
            try:
                evaluate(step, sum(int((parameter.detach() != value).sum()) for parameter, value in pairs))
            except UnsoundModelError:
                return step
    return None


def _batches(n: int, plan: Plan) -> Iterator[list[int]]:
    """Endless batches of places, each row once before any comes again."""
    rng, waiting = np.random.default_rng(plan.seed), []
    size = min(plan.batch_size, n)
    while True:
        if len(waiting) < size:
            waiting += rng.permutation(n).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], held: Sequence[nn.Parameter]) -> None:
    """One step of the float32 copies, rounded into the parameters where these are others."""
    for parameter, master in zip(parameters, held, strict=True):
        if master is not parameter and parameter.grad is not None:
            master.grad, parameter.grad = parameter.grad.float(), None
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter, master in zip(parameters, held, strict=True):
            if master is not parameter:
                parameter.copy_(master)
