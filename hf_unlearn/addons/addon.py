# SPDX-License-Identifier: Apache-2.0
"""An add-on: an object with hooks that runs beside any method."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from .cost import Cost, Sizes


# What an add-on requires, beside what its hooks say (see `training/addon_checks.py`).
GRADIENTS, BACKWARD, OPTIMIZER, WEIGHTS = "gradients", "backward", "optimizer", "weights"
INSIDE, FORWARD, TERMS = "inside", "forward", "terms"


@dataclass(frozen=True)
class Step:
    """An optimizer step that is being made.

    Args:
        trainer ([`UnlearnTrainer`]): the run.
        model (`nn.Module`): the policy as the trainer calls it, wrapped.
        repeat (`Callable[..., None]`): replaces the gradients by those of the same batches at the weights as they are
            now: a forward and a backward for each micro-batch; given names of terms, of these alone (see `terms`).
            What the repeated passes would log is not logged. For `before_optimizer` alone.
    """

    trainer: Any
    model: nn.Module
    repeat: Callable[..., None]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by the name that the model gives them."""
        return {name: weight for name, weight in self.trainer.model.named_parameters() if weight.requires_grad}

    @property
    def terms(self) -> Collection[str]:
        """Names of the terms that make up the loss: roles', then add-ons'; known once a micro-batch went through."""
        return self.trainer.addons.term_names

    def forgets(self, name: str) -> bool:
        """Whether a term is on the side of forgetting, as [`Method.forgets`] says; add-ons' terms are not."""
        return self.trainer.addons.forgets(name)

    @property
    def progress(self) -> float:
        """Share of training that is done, from 0 to 1."""
        return self.trainer.state.global_step / max(self.trainer.state.max_steps, 1)

    def log(self, name: str, value: Tensor) -> None:
        """Adds a scalar to the means of the next log; every process has to."""
        self.trainer.meters.add(name, value)

    def count(self, positions: int) -> None:
        """Counts positions of rows that went forward and back to states, and not to weights, in `total_flos`."""
        self.trainer.addons.to_states += positions


@dataclass(frozen=True)
class Backward:
    """One micro-batch's backward pass.

    Args:
        run (`Callable[..., None]`): adds a loss's gradients to the parameters'; takes `retain_graph`.
        model (`nn.Module`): the wrapped policy.
        share (`float`): what each micro-batch's loss is multiplied by, 1 over their number.
        last (`bool`): whether this is the step's last micro-batch.
        log (`Callable[[str, Tensor], None]`): see [`Step`].
        forgets (`Callable[[str], bool]`): whether the term of a name is on the side of forgetting; see [`Step`].
        mean (`Callable[[Tensor], Tensor]`, *optional*): of a tensor over processes, where there are several: nothing
            else of this pass is.
    """

    run: Callable[..., None]
    model: nn.Module
    share: float
    last: bool
    log: Callable[[str, Tensor], None]
    forgets: Callable[[str], bool]
    mean: Callable[[Tensor], Tensor] | None = None


class AddOn:
    """Base of all add-ons. A subclass overrides the hooks that it requires, and no others: what a run cannot do
    (DeepSpeed, FSDP, fp16, ...) is refused by the hooks that are overridden.

    The order in a run: `refuse`, `load` (the model is not there yet), `start_adapter` (there is no reference yet),
    `see_path`, `setup` (there is, and nothing has trained), `load_state` (on resume), `wrap_optimizer`, `prepare` (all
    processes, the model is wrapped); in every step `before_step`, `around_policy` and `loss` or `around_backward` for
    each micro-batch, `before_optimizer`, `after_optimizer`; `state` at every checkpoint; `finish` after the last step.

    Attributes:
        name (`str`): what the run knows it by; names its state in checkpoints.
        title (`str`): what errors call it, at the beginning of a sentence.
        requires (`frozenset[str]`): constants of this module, beyond what the hooks say: `WEIGHTS` to read whole
            weights, `INSIDE` for gradients of what is read inside the model, `FORWARD` for forwards of its own,
            `TERMS` to repeat steps with some of their terms.
        language_models_only (`bool`): it does not work on classifiers.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    language_models_only: ClassVar[bool] = False

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` for a run that it cannot be part of; called before a model is loaded.

        Args:
            args ([`UnlearnConfig`]): of the run.
            method (`type`): its trainer.
            adapter (`bool`): whether a PEFT adapter trains.
        """

    def load(self, roles: Mapping, collator) -> None:
        """Computes what takes other models, before the policy has its place in memory.

        Args:
            roles (`Mapping[str, datasets.Dataset]`): encoded rows.
            collator ([`RoleCollator`]): pads them.
        """

    def start_adapter(self, entry, added) -> None:
        """Changes where a fresh adapter starts, and what is below it, so that the model says what it said; called
        before there is a reference.

        Args:
            entry ([`~hf_unlearn.stored.row_cache.Entry`]): model, rows, tokenizer, settings.
            added ([`~hf_unlearn.models.adapters.AddedAdapter`], *optional*): `None` if the run added no adapter.
        """

    def see_path(self, entry, path) -> None:
        """Sees how rows go through the model, before it is decided what of that is computed once. Raises `ValueError`
        for a path that it cannot work with.

        Args:
            entry ([`~hf_unlearn.stored.row_cache.Entry`]): model, rows, tokenizer, settings.
            path ([`~hf_unlearn.forward.path.Forward`]): of the policy's rows.
        """

    def setup(self, entry) -> None:
        """Sees the model before it trains, not wrapped.

        Args:
            entry ([`~hf_unlearn.stored.row_cache.Entry`]): model, rows, tokenizer, settings.
        """

    def prepare(self, start) -> None:
        """Computes what takes the wrapped model, before the first step; called by all processes, also on resume.

        Args:
            start ([`~hf_unlearn.stored.row_cache.RunStart`]): model, accelerator, the step that the run goes on from.
        """

    def before_step(self, step: Step) -> None:
        """Called before a step's first micro-batch."""

    def around_policy(self, step: Step, parts: Mapping) -> AbstractContextManager[None]:
        """Entered while a micro-batch's rows go forward through the policy, when the frozen models were through; in
        training only.

        Args:
            step ([`Step`]): of the run.
            parts (`Mapping[str, Mapping[str, Tensor]]`): role to its rows of the micro-batch.
        """
        return nullcontext()

    def loss(self, model: nn.Module, rows: Mapping, step: Step) -> Tensor:
        """A term that is added to the method's, weighted; once a micro-batch.

        Args:
            model (`nn.Module`): the wrapped policy.
            rows (`Mapping[str, RoleRows]`): role to its rows, which went through the model.
            step ([`Step`]): of the run.

        Returns:
            `Tensor`: a scalar, the micro-batch's mean.
        """
        raise NotImplementedError

    def around_backward(self, terms: Mapping[str, Tensor], backward: Backward) -> Tensor:
        """Takes the place of a micro-batch's one backward pass. The gradients that it leaves after a step's last one
        are averaged over processes.

        Args:
            terms (`Mapping[str, Tensor]`): weighted terms that make up the loss, by role; those of add-ons by name.
            backward ([`Backward`]): the pass.

        Returns:
            `Tensor`: the loss to log, detached, with `backward.share` in it.
        """
        raise NotImplementedError

    def before_optimizer(self, step: Step) -> None:
        """Called when the gradients of all micro-batches are summed and averaged over processes, before they are
        clipped: may read and change `parameter.grad`, or call `step.repeat`."""

    def wrap_optimizer(self, optimizer):
        """Called once, when the optimizer is made; returns it, with hooks of its own or another in its place."""
        return optimizer

    def after_optimizer(self, step: Step) -> None:
        """Called when the optimizer has changed the weights."""

    def finish(self, trainer) -> None:
        """Called after the last step, before what is made of the result; may change the weights once more."""

    def cost(self, sizes: Sizes) -> Cost:
        """What it takes beside the method, for `hf-unlearn plan`, which makes it of settings alone; by default nothing
        that counts."""
        return Cost()

    def state(self) -> dict[str, Any]:
        """What is found again on resume: tensors and JSON values by name, the same on every process."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave when the checkpoint was made; tensors are on the CPU."""


def overrides(addon: AddOn, hook: str) -> bool:
    """Whether an add-on has a hook of its own."""
    return getattr(type(addon), hook) is not getattr(AddOn, hook)
