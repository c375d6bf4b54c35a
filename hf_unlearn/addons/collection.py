# SPDX-License-Identifier: Apache-2.0
"""The add-ons of a run, called at their moments."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from .addon import AddOn, Backward, Step, overrides


# Of an add-on's entries in a checkpoint's method state.
PREFIX = "addon."


class AddOns(dict):
    """Name to add-on, in the order in which their hooks are called.

    Args:
        addons (`Iterable[AddOn]`): of the run.
    """

    def __init__(self, addons: Iterable[AddOn]):
        super().__init__({addon.name: addon for addon in addons})
        self.trainer: Any = None
        self._batches: list[Mapping[str, Any]] = []
        self._wrapped: Any = None
        self.term_names: tuple[str, ...] = ()
        # Those that a repeated pass is of; all of them otherwise.
        self._only: Collection[str] | None = None
        # Micro-batches that were gone through again, and positions that went back to states alone, until somebody
        # counts them.
        self.repeated = self.to_states = 0

    def having(self, hook: str) -> list[AddOn]:
        """Those with a hook of their own."""
        return [addon for addon in self.values() if overrides(addon, hook)]

    def load(self, roles, collator) -> None:
        for addon in self.values():
            addon.load(roles, collator)

    def start_adapter(self, entry, added):
        """What adding an adapter did, with what add-ons did to it."""
        for addon in self.having("start_adapter"):
            addon.start_adapter(entry, added)
            added = replace(added, moved=True)
        return added

    def see_path(self, entry, path) -> None:
        for addon in self.values():
            addon.see_path(entry, path)

    def setup(self, entry) -> None:
        for addon in self.values():
            addon.setup(entry)

    def attach(self, trainer) -> None:
        """Called once the trainer is set up."""
        self.trainer = trainer
        if self:
            # Before all others, which thus see the weights as the add-ons leave them.
            trainer.callback_handler.callbacks.insert(0, _Moments(self))

    # One step

    @contextmanager
    def around_policy(self, model: nn.Module, parts: Mapping) -> Iterator[None]:
        """Entered while a micro-batch's rows go forward through the policy."""
        with ExitStack() as entered:
            for addon in self.having("around_policy") if model.training else ():
                entered.enter_context(addon.around_policy(self.step(model), parts))
            yield

    def with_terms(self, weighted: dict[str, Tensor], model: nn.Module, rows: Mapping) -> dict[str, Tensor]:
        """A micro-batch's terms by name, the add-ons' after those of the roles; in a repeated pass, those it is of."""
        own = self.having("loss")
        if self._only is None:
            self.term_names = (*weighted, *(addon.name for addon in own))
        chosen = {name: term for name, term in weighted.items() if self._takes(name)}
        return chosen | {a.name: a.loss(model, rows, self.step(model)) for a in own if self._takes(a.name)}

    def forgets(self, name: str) -> bool:
        """Whether a term is on the side of forgetting, as the method says of its own; those of add-ons are not."""
        return name not in self and self.trainer.forgets(name)

    def _takes(self, name: str) -> bool:
        return self._only is None or name in self._only

    def training_step(self, plain, model: nn.Module, inputs: Mapping[str, Any], num_items) -> Tensor:
        """A micro-batch's forward and backward, and after a step's last one what is done to gradients.

        Args:
            plain (`Callable`): `Trainer.training_step`.
            model, inputs, num_items: its arguments.
        """
        trainer = self.trainer
        if not self or not trainer.trains_model:
            return plain(model, inputs, num_items)
        if not self._batches:
            for addon in self.having("before_step"):
                addon.before_step(self.step(model))
        self._batches.append(inputs)
        last = trainer.accelerator.sync_gradients
        loss = self._forward_backward(plain, model, dict(inputs), num_items, last)
        if last:
            batches, self._batches = self._batches, []
            step = self.step(model, partial(self._repeat, plain, model, batches, num_items))
            for addon in self.having("before_optimizer"):
                addon.before_optimizer(step)
        return loss

    def step(self, model: nn.Module, repeat=None) -> Step:
        return Step(self.trainer, model, repeat or _no_repeat)

    def _forward_backward(self, plain, model, inputs, num_items, last: bool) -> Tensor:
        owner = next(iter(self.having("around_backward")), None)
        if owner is None:
            return plain(model, inputs, num_items)
        trainer = self.trainer
        model.train()
        # Schedule-free optimizers have a mode of their own.
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        inputs, accelerator = trainer._prepare_inputs(inputs), trainer.accelerator
        share = 1 / trainer.current_gradient_accumulation_steps
        mean = partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None
        # DDP averages gradients in one backward pass a forward.
        with accelerator.no_sync(model):
            with trainer.compute_loss_context_manager():
                terms = trainer.weighted_terms(model, inputs)
            backward = Backward(accelerator.backward, model, share, last, trainer.meters.add, self.forgets, mean)
            loss = owner.around_backward(terms, backward)
        if last and mean is not None:
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.grad = mean(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        return loss

    def _repeat(self, plain, model, batches: list, num_items, only: Collection[str] | None = None) -> None:
        trainer = self.trainer
        model.zero_grad()
        with trainer.meters.silent(), self._of_terms(only):
            for number, inputs in enumerate(batches, start=1):
                last = number == len(batches)
                # Gradients are averaged over processes with the last one, as in the step itself.
                with nullcontext() if last else trainer.accelerator.no_sync(model):
                    self._forward_backward(plain, model, dict(inputs), num_items, last)
        self.repeated += len(batches)

    @contextmanager
    def _of_terms(self, names: Collection[str] | None) -> Iterator[None]:
        self._only = names
        try:
            yield
        finally:
            self._only = None

    def take_to_states(self) -> int:
        """Positions that went back to states alone since the last call."""
        found, self.to_states = self.to_states, 0
        return found

    def take_repeated(self) -> int:
        """Micro-batches that were gone through again since the last call."""
        found, self.repeated = self.repeated, 0
        return found

    def wrap_optimizer(self, optimizer):
        """Called whenever the trainer is about to train; what is wrapped already is left as it is.

        Raises:
            `ValueError`: if an add-on gives back something that is no optimizer.
        """
        # An add-on's optimizer may have one inside it, as the accelerator's has.
        if self._wrapped is not None and self._wrapped in (optimizer, getattr(optimizer, "optimizer", None)):
            return optimizer
        for addon in self.having("wrap_optimizer"):
            optimizer = addon.wrap_optimizer(optimizer)
            if not isinstance(optimizer, Optimizer):
                raise ValueError(
                    f"{addon.title}: wrap_optimizer returned a {type(optimizer).__name__}. Return the optimizer that "
                    "it was given, or another `torch.optim.Optimizer`."
                )
        self._wrapped = optimizer
        return optimizer

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """What the add-ons keep, by names that no method has."""
        found: dict[str, Any] = {}
        for addon in self.having("state"):
            # There is an entry for each, so that a checkpoint without one is told.
            found[f"{PREFIX}{addon.name}"] = True
            found |= {f"{PREFIX}{addon.name}.{key}": value for key, value in addon.state().items()}
        return found

    def load_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the add-ons their part of a checkpoint's state; returns the method's.

        Raises:
            `ValueError`: if the checkpoint was made with other add-ons that keep something.
        """
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        made, now = {name for name in own if "." not in name}, {addon.name for addon in self.having("state")}
        for names, told in ((made - now, "with"), (now - made, "without")):
            if names:
                raise ValueError(
                    f"The checkpoint was made {told} {', '.join(sorted(names))}, whose state this run would "
                    f"{'drop' if told == 'with' else 'lack'}. Give the add-ons that it was made with, or start anew."
                )
        for name in sorted(now):
            prefix = f"{name}."
            self[name].load_state({k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)})
        return {name: value for name, value in state.items() if not name.startswith(PREFIX)}


def _no_repeat(only: Collection[str] | None = None) -> None:
    raise RuntimeError("A step is repeated in `before_optimizer` alone: there its batches are known.")


class _Moments(TrainerCallback):
    """Hooks at moments that callbacks know.

    Args:
        addons ([`AddOns`]): of the run.
    """

    def __init__(self, addons: AddOns):
        self.addons = addons

    def on_train_begin(self, args, state, control, **kwargs):
        self.addons._batches = []

    def on_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.addons.trainer
        if trainer.trains_model and not trainer.accelerator.optimizer_step_was_skipped:
            for addon in self.addons.having("after_optimizer"):
                addon.after_optimizer(self.addons.step(trainer.model_wrapped))

    def on_train_end(self, args, state, control, **kwargs):
        for addon in self.addons.having("finish"):
            addon.finish(self.addons.trainer)
