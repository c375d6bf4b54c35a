# SPDX-License-Identifier: Apache-2.0
"""The policy itself, with former values of what trains in its place for the moment."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

from torch import nn

from ..fused import Head
from ..fused.head import active_leaf
from ..modeling import evaluating
from ..models.adapters import AddedAdapter, adapter_off
from ..models.twins import Twins
from .base import Reference


class TwinReference(Reference):
    """A copy of the parameters that train; for the reference's predictions it takes their place in the policy.

    Args:
        model (`PreTrainedModel`):
            The policy, of which some parameters are frozen.
    """

    name = "live"

    def __init__(self, model: nn.Module):
        self.model = model
        self.twins = Twins(model, self.has_twin)

    def has_twin(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter would not be as it entered without a copy of it."""
        return parameter.requires_grad

    def open(self, accelerator) -> None:
        self.twins.place(accelerator.device)

    def prepare(self, start) -> None:
        self.twins.shard()

    def rows(self, forward, policy, parts):
        with self.as_entered(), evaluating(policy):
            found = forward.reference(policy, parts)
            # A head that trains is the policy's again in a moment; its twin's values are kept.
            return {role: replace(rows, head=rows.head and self._kept(rows.head)) for role, rows in found.items()}

    def as_entered(self):
        """A context in which the policy is the reference."""
        return self.twins.in_place()

    def _kept(self, head: Head) -> Head:
        """The head as the policy's forward can use it, which sees today's values in its own."""
        leaf, kept = active_leaf(self.model), {}
        for name in ("weight", "bias"):
            twin, now = self.twins.of(leaf, name), getattr(head, name)
            if twin is not None:
                # What was gathered is let go of after the reference's forward; the whole copy stays.
                kept[name] = twin.to(now.device, now.dtype) if self.twins.shards else now.detach()
        return replace(head, **kept)


class AdapterReference(TwinReference):
    """The policy with its adapter as it entered. A fresh adapter is switched off, and what trains below it, such as
    biases, has a twin; where switching off does not give the model back, all that trains has one.

    Args:
        model (`PeftModel`):
            The policy.
        added ([`~hf_unlearn.models.adapters.AddedAdapter`], *optional*):
            What adding the adapter did, if the trainer added it.
    """

    name = "adapter"

    def __init__(self, model: nn.Module, added: AddedAdapter | None):
        self.below = added.below if off_is_entered(added) else None
        super().__init__(model)

    def has_twin(self, parameter):
        return parameter.requires_grad and (self.below is None or id(parameter) in self.below)

    @contextmanager
    def as_entered(self):
        with nullcontext() if self.below is None else adapter_off(self.model), self.twins.in_place():
            yield


def off_is_entered(added: AddedAdapter | None) -> bool:
    """Whether the policy with its adapter off is the model as it entered, before anything trains."""
    return added is not None and not added.moved
