# SPDX-License-Identifier: Apache-2.0
"""The family of causal language models."""

import logging

from torch import nn

from .. import modeling
from ..data.collator import RoleCollator
from ..data.formats import encode_dataset, tokenizer_of
from ..data.roles import encode_roles
from ..forward import planning
from ..forward.build import build_forward
from ..forward.frozen import FrozenPrefix, frozen_depth
from ..forward.trial import try_model
from ..models.decoders import adds_router_loss, check_decoder_only, check_has_head
from .base import CAUSAL_LM, Family


logger = logging.getLogger(__name__)


class CausalLM(Family):
    """Rows of text, of which tokens are predicted."""

    name = CAUSAL_LM
    pipeline_tag = "text-generation"

    def ready(self, processor):
        tokenizer = tokenizer_of(processor)
        modeling.ensure_pad_token(tokenizer)
        return tokenizer

    def encode_roles(self, forget, retain, processor, args, poisoned=None, alternate=None, needed=()):
        return encode_roles(forget, retain, processor, args, poisoned, alternate, needed)

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

    def frozen_prefix(self, entry, forward):
        layers, depth = frozen_depth(entry.model)
        read = [] if forward.lowest_read is None else [forward.lowest_read]
        # Layers that are replaced put out the states of the last of them.
        depth = min([depth, *(layer + 1 for layer in (*read, *forward.shifted_layers))])
        if layers is None and not all(parameter.requires_grad for parameter in entry.model.parameters()):
            logger.info("States below what trains are computed at every step: the model's layers are not one list.")
        return FrozenPrefix(entry, forward, layers, depth) if depth else None
