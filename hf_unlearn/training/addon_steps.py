# SPDX-License-Identifier: Apache-2.0
"""A trainer that calls add-ons at their moments."""

from typing import Any

from torch import Tensor, nn

from ..addons.addon import AddOn
from ..addons.collection import AddOns
from ..addons.settings import addons_of
from .addon_checks import check_engine, check_run
from .resumable import ResumableTrainer


class AddOnTrainer(ResumableTrainer):
    """[`ResumableTrainer`] with add-ons in its steps and checkpoints.

    Attributes:
        addons ([`AddOns`]): name to add-on.
    """

    addons: AddOns

    @property
    def changes_at_end(self) -> bool:
        """Whether the weights change once more after the last step; a method may say so itself."""
        return bool(self.addons.having("finish"))

    @classmethod
    def addons_of(cls, args) -> list[AddOn]:
        """The add-ons of a run: those that its settings turn on; a method may bring its own."""
        return addons_of(args)

    @classmethod
    def checked_addons(cls, args, adapter: bool) -> list[AddOn]:
        """The run's add-ons; called before a model is loaded.

        Args:
            args ([`UnlearnConfig`]): of the run.
            adapter (`bool`): whether a PEFT adapter trains.

        Raises:
            `ValueError`: for one that does not go with the method, the adapter or another.
        """
        addons = cls.addons_of(args)
        # Those of the settings were checked with them; a method's own were not.
        check_engine(args, addons)
        own_step = cls.training_step is not AddOnTrainer.training_step
        check_run(args, addons, cls, own_step, adapter)
        return addons

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """As [`~transformers.Trainer.training_step`], with what add-ons do to gradients."""
        return self.addons.training_step(super().training_step, model, inputs, num_items_in_batch)

    def create_optimizer(self, *args, **kwargs):
        """As [`~transformers.Trainer.create_optimizer`], with what add-ons make of it."""
        self.optimizer = self.addons.wrap_optimizer(super().create_optimizer(*args, **kwargs))
        return self.optimizer

    def checkpoint_state(self) -> dict[str, Any]:
        """The method's state, and the add-ons'."""
        return super().checkpoint_state() | self.addons.state()

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Gives the method its state, and the add-ons theirs."""
        super().load_checkpoint_state(self.addons.load_state(state))
