# SPDX-License-Identifier: Apache-2.0
"""A model as it is asked: like the checkpoint that is saved of it, whatever training has made of its forward."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..fused.head import unwrapped
from ..modeling import evaluating


@contextmanager
def as_saved(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and in the arithmetic of its weights, as a checkpoint of it is loaded: accelerate
    leaves a forward under autocast on a model that was trained with `bf16: true`, which would round what is measured,
    and not all of it, for `generate` goes around it in a [`~peft.PeftModel`]. Afterwards the model is as it was.

    FSDP computes in what it gathers its weights to, and is left at that.

    Args:
        model (`nn.Module`): wrapped or not.
    """
    core = unwrapped(model)
    kept = vars(core)
    given = {name: kept[name] for name in ("forward", "_original_forward") if name in kept}
    with evaluating(model):
        if len(given) < 2 or _gathers(model):
            yield
            return
        core.forward = given["_original_forward"]
        try:
            yield
        finally:
            core.forward = given["forward"]


def _gathers(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())
