# SPDX-License-Identifier: Apache-2.0
"""What hooks require of a run, and which runs do not have it: refused by that, not by names of add-ons."""

from collections.abc import Iterable

from ..addons.addon import BACKWARD, FORWARD, GRADIENTS, INSIDE, OPTIMIZER, TERMS, WEIGHTS, AddOn, overrides
from ..data.role_table import ROLES
from ..processes import shards_weights


# Hook -> what it requires.
OF_HOOKS = {
    "around_backward": BACKWARD,
    "before_optimizer": GRADIENTS,
    "wrap_optimizer": OPTIMIZER,
    "after_optimizer": WEIGHTS,
    "finish": WEIGHTS,
}
_DOES = {
    BACKWARD: "takes several backward passes",
    GRADIENTS: "reads a step's whole gradients",
    OPTIMIZER: "works inside the optimizer",
    WEIGHTS: "reads whole weights between steps",
    INSIDE: "reads values inside the model",
}
_STEPS_IN_BACKWARD = ("lomo", "layerwise")


def required(addon: AddOn) -> set[str]:
    """Everything that an add-on requires."""
    return {need for hook, need in OF_HOOKS.items() if overrides(addon, hook)} | addon.requires


def check_engine(args, addons: Iterable[AddOn]) -> None:
    """Raises `ValueError` for an add-on that requires what the run's engine or optimizer does not have.

    Args:
        args ([`UnlearnConfig`]): read to its end, so that it is known how the run was launched.
        addons (`Iterable[AddOn]`): of the run.
    """
    for addon in addons:
        if args.load_best_model_at_end and overrides(addon, "finish"):
            raise ValueError(
                f"{addon.title} changes the weights after the last step, and load_best_model_at_end=True takes those "
                "of another. Leave one out."
            )
        for need in sorted(required(addon) - {FORWARD, TERMS}):
            if (why := _missing(args, need)) is not None:
                raise ValueError(f"{addon.title} {_DOES[need]}, and {why}")


def _missing(args, need: str) -> str | None:
    """Why a run does not have what is required, and what to do instead; `None` where it has."""
    if need in (BACKWARD, INSIDE) and args.reentrant:
        return (
            "reentrant checkpointing cuts their gradients. Pass activation_checkpointing_kwargs="
            "{'use_reentrant': False}."
        )
    if need == INSIDE:
        return None
    if shards_weights(args):
        return (
            "DeepSpeed and FSDP hold gradients, weights and optimizer states in parts. Take one process or DDP "
            "(`--accelerate_config multi_gpu`), or leave the add-on out."
        )
    if need == GRADIENTS and args.fp16:
        return "fp16 scales them. Take bf16=True, or leave the add-on out."
    optimizer = str(getattr(args.optim, "value", args.optim))
    if need != WEIGHTS and any(word in optimizer for word in _STEPS_IN_BACKWARD):
        return f"optim={optimizer!r} steps within the backward pass. Take another `optim`, or leave the add-on out."
    return None


def check_run(args, addons: Iterable[AddOn], method: type, own_step: bool, adapter: bool) -> None:
    """Raises `ValueError` for add-ons that do not go with the method, the adapter or each other; called before a model
    is loaded.

    Args:
        args ([`UnlearnConfig`]): of the run.
        addons (`Iterable[AddOn]`): of the run.
        method (`type`): its trainer.
        own_step (`bool`): whether the method makes its steps itself, without a loss that is a sum of terms.
        adapter (`bool`): whether a PEFT adapter trains.
    """
    addons = list(addons)
    for addon in addons:
        hooks = [
            hook
            for hook in ("around_policy", "loss", "before_step", *OF_HOOKS)
            if hook != "finish" and overrides(addon, hook)
        ]
        if own_step and hooks:
            raise ValueError(
                f"{addon.title} takes part in training steps, and {method.method} has none of the usual kind. Leave "
                "it out."
            )
        addon.refuse(args, method, adapter)
    apart = [addon.title for addon in addons if overrides(addon, "around_backward")]
    if len(apart) > 1:
        raise ValueError(f"{' and '.join(apart)} each take the backward pass apart. Leave all but one out.")
    for addon in addons:
        if apart and TERMS in addon.requires:
            raise ValueError(
                f"{addon.title} repeats steps with some of their terms, and {apart[0]} takes the backward pass of all "
                "apart. Leave one out."
            )
    names = [addon.name for addon in addons]
    if len(set(names)) < len(names):
        raise ValueError(f"Two add-ons have the same name: {', '.join(sorted(names))}. Leave one out.")
    for addon in addons:
        # Terms are told apart by it beside those of roles, and states by what stands before a dot.
        if addon.name in ROLES or "." in addon.name:
            why = "has a dot" if "." in addon.name else "is a role's, whose term its own would replace"
            raise ValueError(f"{addon.title} is called {addon.name!r}, which {why}. Give the add-on another `name`.")


def settle_ddp(args, addons: Iterable[AddOn]) -> None:
    """Settings of DDP that follow from forwards of an add-on's own."""
    if args.ddp_find_unused_parameters is None and any(FORWARD in required(addon) for addon in addons):
        # Looking for unused parameters, DDP takes the head for one in a pass that ends before it.
        args.ddp_find_unused_parameters = False
