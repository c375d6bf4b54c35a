# SPDX-License-Identifier: Apache-2.0
"""Whether 16-bit weights move at all, looked at in the first steps of training.

bfloat16 keeps 8 significant bits: a weight w can change by no less than about |w| / 256, and an update of half of that
or more is needed to change it. At w = 0.02 and an Adam step of 1e-5 nothing happens, however often it is repeated.
"""

import logging

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


logger = logging.getLogger(__name__)

TENSORS = 64
WEIGHTS_A_TENSOR = 1024


class RoundingCheck(TrainerCallback):
    """Logs `weights/changed`, the share of the sampled 16-bit weights with a gradient that an optimizer step changed,
    and warns where rounding eats the update. float32 weights cost nothing, nor do steps after the last one looked at.

    Args:
        trainer ([`UnlearnTrainer`]):
            The run.
        steps (`int`):
            Optimizer steps to look at after the warm-up of the learning rate, and all steps of the warm-up.
        threshold (`float`):
            Warns if the mean share after the warm-up is below. Never warns where small updates are kept on average or
            elsewhere: stochastic rounding, Kahan summation, the float32 master weights of DeepSpeed.
    """

    def __init__(self, trainer, steps: int = 3, threshold: float = 0.5):
        self.trainer, self.steps, self.threshold = trainer, steps, threshold
        self.samples: list[_Sample] = []
        self.shares: list[Tensor] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.shares = []
        self.first = max(state.global_step, args.get_warmup_steps(state.max_steps))
        engine = self.trainer.accelerator.distributed_type
        if engine == "FSDP":
            # A forward may leave weights gathered; the optimizer steps shards, which may be wider.
            for module in model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()
        # DeepSpeed's optimizer steps float32 weights that are not the model's.
        self.samples = [] if engine == "DEEPSPEED" else _samples(model)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for sample in self.samples:
            sample.take()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if not self.samples or not self.trainer.trains_model:
            return
        if all(float(group["lr"]) == 0 for group in optimizer.param_groups):
            return
        changed, pushed = (sum(parts) for parts in zip(*(sample.count() for sample in self.samples), strict=True))
        share = changed / pushed.clamp(min=1)
        self.trainer.meters.add("weights/changed", share)
        if state.global_step >= self.first:
            self.shares.append(share)
        if len(self.shares) == self.steps:
            self._judge(optimizer)
            self.samples = []

    def _judge(self, optimizer) -> None:
        share = self.trainer.accelerator.reduce(torch.stack(self.shares).mean(), reduction="mean").item()
        if share >= self.threshold or _keeps_small_updates(optimizer):
            return
        dtype = str(self.samples[0].parameter.dtype).removeprefix("torch.")
        logger.warning(
            "Only %.1f%% of the %s weights that have a gradient changed in a step at learning rate %.3g: rounding to "
            "%s eats most of the update. Take float32 weights (`dtype: float32` with `bf16: true`; 16 bytes a "
            "parameter), or stochastic rounding (`optim: adamw_torch_8bit`, `optim_args: bf16_stochastic_round=True`, "
            "`pip install torchao`; 6 bytes), or DeepSpeed, which keeps float32 copies (`--accelerate_config zero2`).",
            100 * share,
            dtype,
            max(float(group["lr"]) for group in optimizer.param_groups),
            dtype,
        )


class _Sample:
    """Some weights of one parameter, before and after a step."""

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter
        size = _local(parameter).numel()
        count = min(size, WEIGHTS_A_TENSOR)
        # Its own generator: a run must not depend on whether somebody watches.
        chosen = torch.randint(max(size, 1), (count,), generator=torch.Generator().manual_seed(0))
        self.chosen = chosen.to(parameter.device)
        self.stands_for = size / max(count, 1)

    def take(self) -> None:
        gradient = self.parameter.grad
        self.before = self._read(self.parameter)
        self.has_gradient = torch.zeros_like(self.before, dtype=torch.bool)
        if gradient is not None:
            self.has_gradient = self._read(gradient) != 0

    def count(self) -> tuple[Tensor, Tensor]:
        """Estimates for the whole parameter: weights that changed, and weights that had a gradient."""
        changed = (self._read(self.parameter) != self.before) & self.has_gradient
        return changed.sum() * self.stands_for, self.has_gradient.sum() * self.stands_for

    def _read(self, tensor: Tensor) -> Tensor:
        return _local(tensor.detach()).flatten()[self.chosen]


def _samples(model: nn.Module) -> list[_Sample]:
    narrow = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16)
    ]
    stride = max(1, -(-len(narrow) // TENSORS))
    return [_Sample(parameter) for parameter in narrow[::stride]]


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of an FSDP2 parameter; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _keeps_small_updates(optimizer) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)
    kahan = any(group.get("use_kahan_summation") or group.get("kahan_sum") for group in inner.param_groups)
    return kahan or bool(getattr(inner, "bf16_stochastic_round", False))
