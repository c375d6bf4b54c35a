# SPDX-License-Identifier: Apache-2.0
"""The picture's and the text's part of what a model with one stream for both says of a row (ViLT)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...fused.head import unwrapped
from ...losses import at_least_float32


class ModalityMeans:
    """Means over a row's text tokens and over its patches, of the last call of a model."""

    def __init__(self, text_width: int):
        self.text_width = text_width
        self.hidden: Tensor | None = None
        self.mask: Tensor | None = None

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Picture and text of the rows at indices `rows [B]`, `[B, d]` each."""
        hidden, mask = at_least_float32(self.hidden[rows]), self.mask[rows].to(self.hidden.dtype)[..., None]
        text, picture = slice(None, self.text_width), slice(self.text_width, None)
        return tuple(
            (hidden[:, part] * mask[:, part]).sum(1) / mask[:, part].sum(1).clamp(min=1) for part in (picture, text)
        )


def check_two_modalities(model: nn.Module) -> None:
    """Raises `ValueError` unless the model reads pictures and text in one stream."""
    if _core(model).config.model_type != "vilt":
        raise ValueError(
            "lambda_cssa, lambda_cmfc and lambda_coral compare a row's picture with its text, which is built for "
            f"ViLT; this model is a {type(_core(model)).__name__}. Leave them at 0."
        )


@contextmanager
def modality_means(model: nn.Module, text_width: int) -> Iterator[ModalityMeans]:
    """Reads the last hidden states, text first, and which of them are padding, while entered."""
    core, seen = _core(model).vilt, ModalityMeans(text_width)

    def keep_mask(module, args, output):
        seen.mask = output[1]

    def keep_hidden(module, args, output):
        seen.hidden = output[0]

    hooks = [core.embeddings.register_forward_hook(keep_mask), core.register_forward_hook(keep_hidden)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _core(model: nn.Module) -> nn.Module:
    model = unwrapped(model)
    return getattr(model, "get_base_model", lambda: model)()


def cssa(image: Tensor, text: Tensor) -> Tensor:
    """Mean of 1 - cosine between a row's picture and its text, `[B, d]` each; a scalar (MU-ALIGN's code)."""
    return (1 - torch.cosine_similarity(image, text)).mean()


def cmfc(image: Tensor, text: Tensor) -> Tensor:
    """Mean squared difference of the batch's mean picture and mean text; a scalar (MU-ALIGN's code)."""
    return (image.mean(0) - text.mean(0)).square().mean()


def coral(image: Tensor, text: Tensor) -> Tensor:
    """Mean squared difference of the entries of the two covariances (divisor n - 1; 0 for one row); a scalar
    (MU-ALIGN's code, after https://huggingface.co/papers/1607.01719)."""
    if len(image) < 2:
        return (image.sum() + text.sum()) * 0
    return (image.T.cov() - text.T.cov()).square().mean()


TERMS = {"cssa": cssa, "cmfc": cmfc, "coral": coral}
