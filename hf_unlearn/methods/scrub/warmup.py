# SPDX-License-Identifier: Apache-2.0
"""What makes the student differ from its teacher before the divergence of the two is climbed.

Where both are the same the divergence and its gradient are 0: of a model without dropout, rounding decides where the
first max step goes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainerCallback

from ...fused.head import unwrapped


@contextmanager
def embedding_dropout(model: nn.Module, share: float) -> Iterator[None]:
    """While entered, a share of the input embeddings' entries is 0 in training mode."""
    embeddings = unwrapped(model).get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, _, output: F.dropout(output, share, module.training))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def add_noise(model: nn.Module, share: float, seed: int) -> None:
    """Adds Gaussian noise to every parameter that trains, of a share of the tensor's root mean square; of a tensor of
    zeros, such as a fresh adapter's, of 1 over the root of its width."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            size = parameter.float().square().mean().sqrt().item() or 1 / math.sqrt(parameter.shape[-1])
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_((share * size * noise).to(parameter.dtype))


class ParamNoise(TrainerCallback):
    """[`add_noise`] before the first step, once what is computed of the model as it came is computed."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            add_noise(self.trainer.model, args.warmup_noise, args.seed)
