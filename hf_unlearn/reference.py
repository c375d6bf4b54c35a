# SPDX-License-Identifier: Apache-2.0
"""The reference: the model as it enters the trainer, never trained.

| form      | memory          | when                                                         |
|-----------|-----------------|--------------------------------------------------------------|
| `adapter` | the adapter's   | PEFT: a fresh adapter is switched off, any other is copied   |
| `cache`   | an LM head      | full fine-tuning: computed before training, kept on disk     |
| `live`    | a second model  | otherwise, and where a `ref_model` is given; where only some |
|           |                 | matrices train and none is sharded, a copy of those alone    |
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
from .fused.head import is_sharded
from .modeling import evaluating, is_peft_model
from .running.launch_check import asks_fsdp


REFERENCE_ADAPTER = "unlearn_ref"
INITS_THAT_TAKE_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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

    def hidden_from_saving(self):
        """A context in which saving the model does not save what belongs to the reference."""
        return nullcontext()

    def rows(self, forward: Forward, policy: nn.Module, parts: Parts) -> dict[str, ReferenceRows]:
        """What the reference says of rows.

        Args:
            forward ([`Forward`]): the path to use.
            policy (`nn.Module`): the wrapped model, whose forward gathers sharded weights.
            parts (`Parts`): role to its rows of a batch.
        """
        raise NotImplementedError


class AdapterReference(Reference):
    """Switches the trained adapter off, or to a frozen copy where the adapter came in trained.

    Args:
        model (`PeftModel`):
            The policy.
        fresh (`bool`):
            Whether the model with the adapter off is the model as it came in; not so for an adapter that came in
            trained or that took its first weights from the base model's.
    """

    name = "adapter"

    def __init__(self, model: nn.Module, fresh: bool):
        self.model = model
        self.state = None
        if not fresh:
            from peft import get_peft_model_state_dict

            self.trained = model.active_adapter
            self.state = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}

    def open(self, accelerator) -> None:
        """Adds the frozen copy, if one is needed. It is on the model only between `open` and `close`."""
        if self.state is None:
            return
        from peft import set_peft_model_state_dict

        config = copy.deepcopy(self.model.peft_config[self.trained])
        if _takes_from_base(config):
            # Adding the adapter must not take from the base a second time; its weights are set below.
            config.init_lora_weights = True
        self.model.add_adapter(REFERENCE_ADAPTER, config)
        set_peft_model_state_dict(self.model, self.state, adapter_name=REFERENCE_ADAPTER)
        self.model.set_adapter(self.trained)

    def close(self) -> None:
        if self.state is not None and REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)
            self.model.set_adapter(self.trained)

    @contextmanager
    def hidden_from_saving(self):
        """PEFT saves every adapter it knows; the reference's is not part of the result."""
        config = self.model.peft_config.pop(REFERENCE_ADAPTER, None)
        try:
            yield
        finally:
            if config is not None:
                self.model.peft_config[REFERENCE_ADAPTER] = config

    def rows(self, forward, policy, parts):
        # PEFT makes the whole of an adapter trainable when it is switched on; some of it may be frozen.
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            with self._switched(), evaluating(policy):
                return forward.reference(policy, parts)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    @contextmanager
    def _switched(self):
        if self.state is None:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(self.trained)


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
        self.twins = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def open(self, accelerator) -> None:
        self.twins = {name: twin.to(accelerator.device) for name, twin in self.twins.items()}

    def rows(self, forward, policy, parts):
        with self._swapped(), evaluating(policy):
            found = forward.reference(policy, parts)
            # A head that trains is the policy's again in a moment; its twin's values are kept.
            return {role: replace(rows, head=rows.head and _detached(rows.head)) for role, rows in found.items()}

    @contextmanager
    def _swapped(self):
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        parameters = dict(self.model.named_parameters())
        for name, twin in self.twins.items():
            self.twins[name], parameters[name].data = parameters[name].data, twin


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
        fresh_adapter (`bool`):
            Whether the policy's adapter was added by the trainer.
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
    fresh_adapter: bool = False
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
        switch_off = request.fresh_adapter and not _takes_from_base(model.peft_config[model.active_adapter])
        return AdapterReference(model, switch_off)
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
        return LiveReference(frozen_copy(model, request.reload))
    from .stored.reference import CachedReference

    return CachedReference(request.entry, request.needs, **request.forward.computed)


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


def _detached(head: Head) -> Head:
    return replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())


def _takes_from_base(peft_config) -> bool:
    """Whether the adapter's initialisation moves part of the base weights into the adapter."""
    init = getattr(peft_config, "init_lora_weights", None)
    return isinstance(init, str) and init.lower().startswith(INITS_THAT_TAKE_FROM_BASE)
