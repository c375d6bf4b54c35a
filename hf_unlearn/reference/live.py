# SPDX-License-Identifier: Apache-2.0
"""A second, frozen model in memory."""

import copy
from dataclasses import replace

import torch
from torch import nn

from ..fused import Head, gathered_head, head_of
from ..fused.head import is_sharded
from .base import Reference


class LiveReference(Reference):
    """A second, frozen model in memory. It stays there for another call of `train`.

    Args:
        model (`PreTrainedModel`):
            The frozen model; see [`frozen_copy`].
    """

    name = "live"

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)
        self.prepared = False
        self.head: Head | None = None

    def open(self, accelerator) -> None:
        """Places the model as the accelerator places models: sharded where the policy is."""
        if self.prepared:
            return
        if accelerator.distributed_type == "DEEPSPEED":
            from trl.models import prepare_deepspeed

            self.model = prepare_deepspeed(self.model, accelerator)
        elif accelerator.distributed_type == "FSDP":
            from trl.models import prepare_fsdp

            self.model = prepare_fsdp(self.model, accelerator)
        else:
            self.model = accelerator.prepare_model(self.model, evaluation_mode=True)
        self.prepared = True

    def rows(self, forward, policy, parts):
        found = forward.reference(self.model, parts)
        return {role: replace(rows, head=rows.head and self._kept(rows.head)) for role, rows in found.items()}

    def _kept(self, head: Head) -> Head:
        """The head as the policy's forward can use it: sharded weights are let go of after the reference's forward."""
        if self.head is None:
            own = head_of(self.model)
            if not is_sharded(own):
                return head
            with gathered_head(own) as whole, torch.no_grad():
                bias = None if whole.bias is None else whole.bias.clone()
                self.head = replace(whole, weight=whole.weight.clone(), bias=bias)
        return self.head


def frozen_copy(model: nn.Module, reload=None) -> nn.Module:
    """A copy of the model as it is now, or an error where copying would give something else."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        if reload is None:
            raise ValueError(
                "Under ZeRO-3 a copy of a loaded model holds no weights. Pass the model as a path or Hub id, or pass "
                "`ref_model`."
            )
        return reload()
    if any("forward" in vars(module) for module in model.modules()):
        raise ValueError(
            "The model's `forward` was replaced on the instance (trainers with a fused head do this), so a copy would "
            "still run the original's weights. Pass the model as a path, or pass `ref_model`."
        )
    return copy.deepcopy(model)
