# SPDX-License-Identifier: Apache-2.0
"""The reference: the model as it enters the trainer, never trained.

| form      | memory          | when                                                                              |
|-----------|-----------------|-----------------------------------------------------------------------------------|
| `adapter` | the adapter's   | PEFT: a fresh adapter is switched off; what trains beside it, or came in trained, |
|           | at most         | has its former values back for the moment                                         |
| `cache`   | an LM head      | full fine-tuning: computed before training, kept on disk                          |
| `live`    | a second model  | otherwise, and where a `ref_model` is given; where only some matrices train and   |
|           |                 | none is sharded, a copy of those alone                                            |
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from .forward.layer import STATES_KL
from .forward.needs import of_whole_prediction
from .forward.passes import Parts
from .forward.path import Forward
from .forward.rows import ReferenceRows
from .fused import Head, gathered_head, head_of
from .fused.head import active_leaf, is_sharded
from .modeling import evaluating
from .models.adapters import AddedAdapter, adapter_off, is_peft_model
from .models.checkpoint_paths import REFERENCE_ADAPTER
from .models.twins import Twins
from .processes import asks_fsdp


__all__ = ["REFERENCE_ADAPTER"]


class Reference:
    """Where the reference's predictions come from. `open` and `close` enclose a call of `train`."""

    name: str
    # Whether rows go through a model in training; not so where what it says was kept.
    reads_along = True

    def open(self, accelerator) -> None:
        """Places what is needed on the devices; called before the model is wrapped."""

    def prepare(self, trainer) -> None:
        """Computes what is needed ahead; called by all ranks when the model is wrapped, before the first step."""

    def close(self) -> None:
        """Takes off the model what `open` put on it."""

    def rows(self, forward: Forward, policy: nn.Module, parts: Parts) -> dict[str, ReferenceRows]:
        """What the reference says of rows.

        Args:
            forward ([`Forward`]): the path to use.
            policy (`nn.Module`): the wrapped model, whose forward gathers sharded weights.
            parts (`Parts`): role to its rows of a batch.
        """
        raise NotImplementedError


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

    def prepare(self, trainer) -> None:
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
        self.below = added.below if _off_is_entered(added) else None
        super().__init__(model)

    def has_twin(self, parameter):
        return parameter.requires_grad and (self.below is None or id(parameter) in self.below)

    @contextmanager
    def as_entered(self):
        with nullcontext() if self.below is None else adapter_off(self.model), self.twins.in_place():
            yield


@dataclass
class ReferenceRequest:
    """What decides which reference is built.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The policy before training.
        args ([`UnlearnConfig`]):
            The run's.
        needs (`Mapping[str, str]`):
            Role to what is asked of the reference.
        forward ([`Forward`]):
            The path to use.
        entry ([`~hf_unlearn.stored.rows.Entry`]):
            The run, for a cached reference.
        added ([`~hf_unlearn.models.adapters.AddedAdapter`], *optional*):
            What adding an adapter did, if the trainer added one.
        ref_model (`PreTrainedModel`, *optional*):
            Given by the user; used as it is.
        reload (`Callable`, *optional*):
            Loads the model again from where it came; needed under ZeRO-3, where a copy holds no weights.
    """

    model: nn.Module
    args: object
    needs: Mapping[str, str]
    forward: Forward
    entry: object
    added: AddedAdapter | None = None
    ref_model: nn.Module | None = None
    reload: Callable | None = None


def build_reference(request: ReferenceRequest) -> Reference:
    """Chooses the cheapest reference that works, or the one asked for.

    Raises:
        `ValueError`: if the form asked for cannot work, with the reason.
    """
    model, kind = request.model, request.args.reference
    if request.ref_model is not None:
        if request.ref_model is model:
            raise ValueError("`ref_model` is the model itself. Leave it out: the reference is made for you.")
        return LiveReference(request.ref_model)
    if is_peft_model(model) and kind in ("auto", "adapter"):
        return AdapterReference(model, request.added)
    whole = any(of_whole_prediction(need) or need == STATES_KL for need in request.needs.values())
    path = request.forward
    cacheable = path.keeps_predictions and (path.fused or not whole)
    if kind == "cache" and not cacheable:
        why = (
            "keeps hidden states for whole predictions, which needs the fused losses, and they are off or cannot take "
            "this model's head"
            if path.keeps_predictions
            else "is for language models, and this is a classifier"
        )
        raise ValueError(f"reference='cache' {why}. Take reference='live'.")
    if kind == "live" or not cacheable:
        if _twin_is_enough(model, request.args):
            return TwinReference(model)
        second = frozen_copy(model, request.reload)
        if _off_is_entered(request.added) and is_peft_model(second):
            second.base_model.disable_adapter_layers()
        return LiveReference(second)
    from .stored.reference import CachedReference

    computed = dict(request.forward.computed)
    if not _off_is_entered(request.added):
        return CachedReference(request.entry, request.needs, **computed)
    return CachedReference(request.entry, request.needs, lambda: adapter_off(model), **computed, adapter="off")


def _off_is_entered(added: AddedAdapter | None) -> bool:
    """Whether the policy with its adapter off is the model as it entered, before anything trains."""
    return added is not None and not added.moved


def _twin_is_enough(model: nn.Module, args) -> bool:
    """Whether some of a plain model's parameters are frozen, and all are whole on every process."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    sharded = is_deepspeed_zero3_enabled() or asks_fsdp(args)
    whole = not (sharded or is_peft_model(model))
    return whole and not all(parameter.requires_grad for parameter in model.parameters())


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
