# SPDX-License-Identifier: Apache-2.0
"""Which form a frozen model takes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..forward.needs import REFERENCE, Need, Needs
from ..forward.path import Forward
from ..models.adapters import AddedAdapter, adapter_off, is_peft_model
from ..models.weight_checks import some_of
from ..processes import asks_fsdp
from ..stored.row_cache import Entry
from .base import Reference
from .cached import CachedReference
from .live import LiveReference, frozen_copy
from .twin import AdapterReference, TwinReference, off_is_entered


@dataclass
class ReferenceRequest:
    """What decides which form the frozen models of a run take.

    Args:
        entry ([`~hf_unlearn.stored.row_cache.Entry`]):
            The run, with the policy before training.
        needs (`Needs`):
            Role to what the method reads of it.
        forward ([`Forward`]):
            The path to use.
        added ([`~hf_unlearn.models.adapters.AddedAdapter`], *optional*):
            What adding an adapter did, if the trainer added one.
        reload (`Callable`, *optional*):
            Loads the policy again from where it came; needed under ZeRO-3, where a copy holds no weights.
        models (`dict[str, nn.Module]`):
            Models that were given, by name; one called `reference` takes the place of the model as it entered.
    """

    entry: Entry
    needs: Needs
    forward: Forward
    added: AddedAdapter | None = None
    reload: Callable | None = None
    models: dict[str, nn.Module] = field(default_factory=dict)

    def needs_of(self, name: str) -> dict[str, Need]:
        """The roles whose rows are compared with a frozen model."""
        return {role: need for role, need in self.needs.items() if name in need.reference}


def build_reference(request: ReferenceRequest, name: str = REFERENCE) -> Reference:
    """Chooses the cheapest form of a frozen model that works, or the one asked for.

    Raises:
        `ValueError`: if the form asked for cannot work, with the reason.
    """
    entry, needs, given = request.entry, request.needs_of(name), request.models.get(name)
    policy, kind = entry.model, entry.args.reference
    if given is not None:
        _check_apart("`ref_model`" if name == REFERENCE else f"ref_models[{name!r}]", given, policy)
    if name == REFERENCE and given is not None:
        return LiveReference(given)
    if given is None and is_peft_model(policy) and kind in ("auto", "adapter"):
        return AdapterReference(policy, request.added)
    path, computed = request.forward, dict(request.forward.computed)
    cacheable = path.keeps_predictions and (path.fused or not any(need.whole for need in needs.values()))
    if kind == "cache" and not cacheable:
        why = (
            "keeps hidden states for whole predictions, which needs the fused losses, and they are off or cannot take "
            "this model's head"
            if path.keeps_predictions
            else "is for language models, and this is a classifier"
        )
        raise ValueError(f"reference='cache' {why}. Take reference='live'.")
    if given is not None:
        live = LiveReference(given)
        if kind == "live" or not cacheable:
            return live
        return CachedReference(entry.of(given), needs, path, source=live, **computed)
    if kind == "live" or not cacheable:
        if _twin_is_enough(policy, entry.args):
            return TwinReference(policy)
        second = frozen_copy(policy, request.reload)
        if off_is_entered(request.added) and is_peft_model(second):
            second.base_model.disable_adapter_layers()
        return LiveReference(second)
    if not off_is_entered(request.added):
        return CachedReference(entry, needs, path, **computed)
    return CachedReference(entry, needs, path, lambda: adapter_off(policy), **computed, adapter="off")


def _check_apart(argument: str, given: nn.Module, policy: nn.Module) -> None:
    """Refuses a frozen model that would train along, and stay frozen in the policy: an adapter is put into the model
    that it is added to."""
    trains = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    shared = [name for name, parameter in given.named_parameters() if id(parameter) in trains]
    if given is policy:
        raise ValueError(f"{argument} is the model itself. Leave it out: the reference is made for you.")
    if shared:
        raise ValueError(
            f"{argument} shares parameters with the model, which trains them ({some_of(shared)}). Leave it out if the "
            "model as it enters is meant, whose reference is made for you; otherwise load the other model by itself."
        )


def _twin_is_enough(model: nn.Module, args) -> bool:
    """Whether some of a plain model's parameters are frozen, and all are whole on every process."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    sharded = is_deepspeed_zero3_enabled() or asks_fsdp(args)
    whole = not (sharded or is_peft_model(model))
    return whole and not all(parameter.requires_grad for parameter in model.parameters())
