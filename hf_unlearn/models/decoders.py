# SPDX-License-Identifier: Apache-2.0
"""What makes a model a language model that predicts each token from those before it, as far as its config shows."""

from torch import nn


def check_decoder_only(config, name: str) -> None:
    """Raises `ValueError` for a model with an encoder, whose decoder alone would be another model."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model (`is_encoder_decoder` in its config): rows here are one text, of "
            "which tokens are predicted from left to right. Give a decoder-only model."
        )


def check_has_head(model: nn.Module) -> None:
    """Raises `ValueError` for a loaded model without a head, such as a `LlamaModel`."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        name = type(getattr(model, "get_base_model", lambda: model)()).__name__
        raise ValueError(
            f"{name} has no output embeddings, so it predicts no tokens. Load the model with "
            "`AutoModelForCausalLM.from_pretrained`."
        )


def adds_router_loss(model: nn.Module) -> bool:
    """Whether a mixture of experts adds a loss for its router to its own."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))
