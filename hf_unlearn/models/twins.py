# SPDX-License-Identifier: Apache-2.0
"""Values of some of a model's parameters as they once were, which take the place of today's for a while.

The model itself knows nothing of them: no file that is written of it can hold them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


CHECKPOINTED = "_checkpoint_wrapped_module."


class Twins:
    """Copies of the parameters that are chosen, taken now.

    Args:
        model (`nn.Module`): before it is wrapped; sharded by ZeRO-3 already, where that loads in shards.
        chosen (`Callable[[nn.Parameter], bool]`): whether a parameter has a twin.
    """

    def __init__(self, model: nn.Module, chosen: Callable[[nn.Parameter], bool]):
        self.model = model
        # Whole values, on every process.
        self.values = {n: _whole(p).detach().clone() for n, p in model.named_parameters() if chosen(p)}
        self.shards: dict[str, Tensor] = {}

    def place(self, device: torch.device) -> None:
        """Moves the copies to a device."""
        self.values = {name: value.to(device) for name, value in self.values.items()}

    def shard(self) -> None:
        """Splits the copies as the wrapped model's parameters are split; called by all ranks, which all get the first
        one's values. Nothing happens where parameters are whole, or shards are there."""
        if self.shards:
            return
        self._drop_gathered()
        parameters = self._parameters()
        partitioned = {name: p for name, p in parameters.items() if name in self.values and hasattr(p, "ds_id")}
        if partitioned:
            self.shards |= _partitions(partitioned, self.values)
        for name, value in self.values.items():
            parameter = parameters[name]
            if hasattr(parameter, "full_tensor"):
                from torch.distributed.tensor import distribute_tensor

                value = value.to(parameter.device, parameter.dtype)
                shard = distribute_tensor(value, parameter.device_mesh, parameter.placements)
                self.shards[name] = shard.to_local().clone()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model's parameters have the copies' values."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def of(self, module: nn.Module, name: str) -> Tensor | None:
        """The copy of a module's parameter, whole and not to be written to, if there is one."""
        (path,) = (path for path, found in self.model.named_modules() if found is module)
        return self.values.get(f"{path}.{name}".replace(CHECKPOINTED, ""))

    def _exchange(self) -> None:
        if self.shards:
            self._drop_gathered()
        parameters = self._parameters()
        with torch.no_grad():
            for name, value in self.values.items():
                parameter = parameters[name]
                if name in self.shards:
                    local, shard = _local(parameter), self.shards[name]
                    now = local.clone()
                    local.copy_(shard)
                    shard.copy_(now)
                else:
                    # Pointers alone: nothing is copied, and what was computed with either goes on to see it.
                    twin = value.to(parameter.device, parameter.dtype)
                    self.values[name], parameter.data = parameter.data, twin

    def _drop_gathered(self) -> None:
        """Lets go of weights gathered from the shards: the next forward gathers anew."""
        for name, parameter in self._parameters().items():
            if name in self.values and hasattr(parameter, "ds_id"):
                parameter.partition()
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By the names of the unwrapped model: activation checkpointing puts a word of its own into them."""
        return {n.replace(CHECKPOINTED, ""): p for n, p in self.model.named_parameters()}


def _local(parameter: Tensor) -> Tensor:
    """The own shard, which writing to changes the parameter."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_id") else parameter.to_local()


def _whole(parameter: Tensor) -> Tensor:
    """A parameter's values, gathered by all ranks where they are sharded."""
    if not hasattr(parameter, "ds_id"):
        return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _partitions(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The own ZeRO-3 shards of whole values: written through the parameters, which have their own back afterwards."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    own = {name: parameter.ds_tensor.data.clone() for name, parameter in parameters.items()}
    with GatheredParameters(list(parameters.values()), modifier_rank=0), torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])
    shards = {name: parameter.ds_tensor.data.clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.ds_tensor.data.copy_(own[name])
    return shards
