# SPDX-License-Identifier: Apache-2.0
"""Watching a training run: how long steps take and how often models run forward."""

import functools
import time
from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainerCallback


class ForwardCounter:
    """Counts forwards of every model of a class, copies included: `policy` with a gradient, `reference` without; and
    the `tokens` that went through, padding included."""

    def __init__(self):
        self.counts: Counter[str] = Counter()

    @contextmanager
    def watching(self, backbone: type[nn.Module]):
        """Counts calls of the class's `forward`; a model that runs without its head counts too."""
        original = backbone.forward

        @functools.wraps(original)
        def forward(module, *args, **kwargs):
            inputs = kwargs["input_ids"]
            self.counts["policy" if torch.is_grad_enabled() else "reference"] += 1
            self.counts["tokens"] += inputs.numel()
            return original(module, *args, **kwargs)

        backbone.forward = forward
        try:
            yield self
        finally:
            backbone.forward = original


class StepClock(TrainerCallback):
    """Seconds and forwards of each optimizer step, from the end of one to the end of the next.

    Attributes:
        seconds (`list[float]`): of every step but the first `warmup`.
        cpu_seconds (`list[float]`): the same, of all threads together while they ran: on a busy machine, too.
        before (`Counter`): before the first step: a reference pass, or a look at a few tokens.
        counts (`Counter`): during the steps of `seconds`.
    """

    def __init__(self, device: torch.device, warmup: int, counter: ForwardCounter):
        self.device, self.warmup, self.counter = device, warmup, counter
        self.created = time.perf_counter()
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = Counter(self.counter.counts)
        self.preparation = self._now() - self.created

    def on_step_end(self, args, state, control, **kwargs):
        now, cpu = self._now(), time.process_time()
        if state.global_step > self.warmup:
            self.seconds.append(now - self.last)
            self.cpu_seconds.append(cpu - self.last_cpu)
            self.counts = self.counter.counts - self.start
        elif state.global_step == self.warmup:
            self.start = Counter(self.counter.counts)
        self.last, self.last_cpu = now, cpu

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
