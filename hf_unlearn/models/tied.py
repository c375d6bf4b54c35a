# SPDX-License-Identifier: Apache-2.0
"""Models whose LM head is their embedding too."""

import logging

from torch import nn


logger = logging.getLogger(__name__)


def embeddings_are_tied(model: nn.Module) -> bool:
    """Whether the LM head's matrix is that of the input embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie_as_asked(args, model: nn.Module) -> None:
    """[`untie_embeddings`], if `untie_embeddings` is on."""
    if args.untie_embeddings:
        untie_embeddings(model)


def check_untie(args, adapter: bool) -> None:
    """Raises `ValueError` where asked for and weights of the head's own would not be saved, or could not be copied."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not args.untie_embeddings:
        return
    if adapter:
        raise ValueError(
            "untie_embeddings changes the model below the adapter, which is not saved with it. Leave it out, or untie "
            "and save the model first."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "untie_embeddings copies the embeddings, which are sharded under ZeRO-3. Untie and save the model on one "
            "process first, or take another launch."
        )


def untie_embeddings(model: nn.Module) -> None:
    """Gives a tied LM head weights of its own, equal to the embeddings', here and wherever the model is loaded again.

    Args:
        model (`PreTrainedModel`): not wrapped, with whole weights.
    """
    if not embeddings_are_tied(model):
        logger.info("untie_embeddings: the head of this model has weights of its own already.")
        return
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    # What is tied at saving and loading follows from the config; a model in memory remembers what it was.
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
