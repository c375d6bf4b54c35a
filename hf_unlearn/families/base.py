# SPDX-License-Identifier: Apache-2.0
"""What differs between the kinds of models that are unlearned from: how rows are encoded, batched and predicted."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from ..data.collator import RoleBatches
from ..data.pairing import RolePairs
from ..forward.frozen import FrozenPrefix
from ..forward.needs import Needs
from ..forward.path import Forward
from ..stored.row_cache import Entry


logger = logging.getLogger(__name__)

CAUSAL_LM, CLASSIFIER = "causal language models", "classifiers"


class Family:
    """A kind of model: how its rows are encoded, batched and predicted."""

    name: str
    # What the Hub calls what its models do.
    pipeline_tag: str
    # The class that loads its models, where no `Auto` class of transformers does.
    architecture: str | None = None
    # Columns of flat rows that a model's forward does not take by these names.
    columns: tuple[str, ...] = ()

    def check_method(self, trainer_class: type) -> None:
        """Raises `ValueError` for a method that is not defined for the family's models."""
        if self.name not in trainer_class.families:
            raise ValueError(
                f"{trainer_class.__name__} is for {' and '.join(trainer_class.families)}, and this model is one of "
                f"the {self.name}. `hf-unlearn methods` lists what there is."
            )

    def ready(self, processor):
        """What rows go through: the processor, or the part of it that the family reads.

        Raises:
            `ValueError`: for a processor that cannot pad.
        """
        return processor

    def encode_roles(self, forget, retain, processor, args, poisoned=None, alternate=None, needed=()) -> dict:
        """Role to encoded rows; see [`~hf_unlearn.data.roles.encode_roles`]."""
        raise NotImplementedError

    def encode(self, rows, processor, max_length: int | None, name: str):
        """Rows of one set, encoded."""
        raise NotImplementedError

    def collator(self, processor, roles, max_length: int | None, pad_to_multiple_of: int | None = None) -> RoleBatches:
        """What makes batches of encoded rows."""
        raise NotImplementedError

    def check_model(self, model: nn.Module, processor, ref_model: nn.Module | None) -> None:
        """Raises `ValueError` for a processor or reference that does not fit the model."""
        raise NotImplementedError

    def adapter_config(self, peft_config):
        """The config of a fresh adapter, as the model takes it."""
        return peft_config

    def predictions(self, model: nn.Module, processor) -> int:
        """Among how many a prediction chooses; entries that only pad a head do not count."""
        raise NotImplementedError

    def positions(self, batch: Mapping[str, Tensor]) -> int:
        """States of a layer for a row of a batch, padding included; 0 where layers differ in that."""
        return batch["input_ids"].shape[-1]

    def shape_of(self, pairs: RolePairs, args) -> str:
        """How a step's rows go through the model."""
        raise NotImplementedError

    def build_forward(self, model: nn.Module, args, needs: Needs, shape: str) -> Forward:
        """The path of rows through the model."""
        raise NotImplementedError

    def try_model(self, trainer) -> None:
        """Raises `ValueError` for a model that does not do what the family's models do; called by all ranks when the
        model is wrapped."""

    def evaluated(self, model: nn.Module, inputs: dict) -> dict:
        """A flat batch as it is handed to the model for its own loss."""
        return inputs

    def frozen_prefix(self, entry: Entry, forward: Forward) -> FrozenPrefix | None:
        """Takes the layers whose states are constants in training out of a path, where they can be kept on disk."""
