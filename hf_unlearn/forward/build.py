# SPDX-License-Identifier: Apache-2.0
"""Which of two paths to the same numbers a model's rows take."""

import logging

from torch import nn

from .. import fused
from .fused_path import FusedForward
from .logits_path import LogitsForward
from .needs import Needs
from .path import Forward


logger = logging.getLogger(__name__)


def build_forward(model: nn.Module, fused_losses: bool | None, needs: Needs, shape: str) -> Forward:
    """The fused path, or the one over logits where it is asked for or the model's head cannot be taken apart.

    Args:
        model (`nn.Module`): the model, not wrapped yet.
        fused_losses (`bool`, *optional*): `None` takes the fused path where it works.
        needs, shape: see [`Forward`].

    Raises:
        `ValueError`: if `fused_losses` is true and the head does not allow it.
    """
    if fused_losses is False:
        return LogitsForward(needs, shape)
    try:
        fused.head_of(model)
    except ValueError as error:
        if fused_losses:
            raise
        logger.info("Losses are taken over logits: %s", error)
        return LogitsForward(needs, shape)
    return FusedForward(needs, shape)
