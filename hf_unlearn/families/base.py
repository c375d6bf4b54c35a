# SPDX-License-Identifier: Apache-2.0
"""What differs between the kinds of models that are unlearned from: how rows are encoded, batched and predicted."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from .. import modeling
from ..data.collator import RoleBatches, RoleCollator
from ..data.formats import encode_dataset, tokenizer_of
from ..data.pairing import RolePairs
from ..data.roles import encode_roles
from ..forward import planning
from ..forward.build import build_forward
from ..forward.frozen import FrozenPrefix, frozen_depth
from ..forward.needs import Needs
from ..forward.path import Forward
from ..forward.trial import try_model
from ..models.decoders import adds_router_loss, check_decoder_only, check_has_head
from ..models.loading import class_of
from ..stored.rows import Entry
from ..training.config import UnlearnConfig


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

    def encode_roles(self, forget, retain, processor, args: UnlearnConfig, poisoned=None) -> dict:
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

    def shape_of(self, pairs: RolePairs, args: UnlearnConfig) -> str:
        """How a step's rows go through the model."""
        raise NotImplementedError

    def build_forward(self, model: nn.Module, args: UnlearnConfig, needs: Needs, shape: str) -> Forward:
        """The path of rows through the model."""
        raise NotImplementedError

    def try_model(self, trainer) -> None:
        """Raises `ValueError` for a model that does not do what the family's models do; called by all ranks when the
        model is wrapped."""

    def evaluated(self, model: nn.Module, inputs: dict) -> dict:
        """A flat batch as it is handed to the model for its own loss."""
        return inputs

    def frozen_prefix(self, entry: Entry) -> FrozenPrefix | None:
        """The layers whose states are constants in training, where they can be kept."""


class CausalLM(Family):
    """Rows of text, of which tokens are predicted."""

    name = CAUSAL_LM
    pipeline_tag = "text-generation"

    def ready(self, processor):
        tokenizer = tokenizer_of(processor)
        modeling.ensure_pad_token(tokenizer)
        return tokenizer

    def encode_roles(self, forget, retain, processor, args, poisoned=None):
        return encode_roles(forget, retain, processor, args, poisoned)

    def encode(self, rows, processor, max_length, name):
        return encode_dataset(rows, processor, max_length, name)

    def collator(self, processor, roles, max_length, pad_to_multiple_of=None):
        return RoleCollator(processor.pad_token_id, tuple(roles), pad_to_multiple_of=pad_to_multiple_of)

    def check_model(self, model, processor, ref_model):
        if not isinstance(ref_model, nn.Module | None):
            raise ValueError(f"`ref_model` is a {type(ref_model).__name__}. Pass a loaded model, or leave it out.")
        for given in filter(None, (model, ref_model)):
            check_decoder_only(given.config, type(given).__name__)
            check_has_head(given)
        if adds_router_loss(model):
            logger.warning(
                "output_router_logits is set in the model's config: its auxiliary loss is left out, in training and "
                "in evaluation, so what balances the experts is not trained."
            )
        modeling.check_vocabulary(model, processor, ref_model)

    def predictions(self, model, processor) -> int:
        return len(processor)

    def shape_of(self, pairs, args) -> str:
        return planning.shape_of(pairs, args)

    def build_forward(self, model, args, needs, shape):
        return build_forward(model, args.fused_losses, needs, shape)

    def try_model(self, trainer):
        # Of any role: some methods train on no forget rows.
        rows = next(iter(trainer.train_dataset.roles.values()))["input_ids"]
        try_model(trainer, next(iter(rows)))

    def evaluated(self, model, inputs):
        # A router's auxiliary loss belongs to no term of the objective, so it is no part of evaluation either.
        return {**inputs, "output_router_logits": False} if adds_router_loss(model) else inputs

    def frozen_prefix(self, entry):
        layers, depth = frozen_depth(entry.model)
        if layers is None and not all(parameter.requires_grad for parameter in entry.model.parameters()):
            logger.info("States below what trains are computed at every step: the model's layers are not one list.")
        return FrozenPrefix(entry, layers, depth) if depth else None


def family_of(
    model: str | nn.Module, likelihood: str = "auto", trust_remote_code: bool = False, revision: str | None = None
) -> Family:
    """The family that a model is of, by its class or, for a path or Hub id, by the class that its config names."""
    config = modeling.config_of(model, trust_remote_code, revision)
    if isinstance(model, str):
        name = (getattr(config, "architectures", None) or [""])[0]
    else:
        name = type(getattr(model, "get_base_model", lambda: model)()).__name__
    if isinstance(model, str) and config is not None:
        # A model that cannot be loaded is told before rows are read.
        class_of(config)
    if modeling.is_classifier(name):
        from .classifier.family import Classifier

        return Classifier(config, likelihood, name)
    return CausalLM()
