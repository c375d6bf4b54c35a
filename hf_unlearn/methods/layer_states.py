# SPDX-License-Identifier: Apache-2.0
"""What methods share whose terms read the output of decoder layers, and nothing above them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ..modeling import is_peft_model
from ..models.activations import check_layer, layers_of
from ..models.layer_choice import check_adapter_saved, check_below, freeze_outside, names_up_to
from ..training.config import UnlearnConfig


logger = logging.getLogger(__name__)

# What is lowered and fell by less of itself has not moved.
MOVED = 0.05


@dataclass
class LayerStatesConfig(UnlearnConfig):
    """Settings of methods whose forget and retain terms are both over activations."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("none", "states")

    retain_loss: str = field(
        default="states", metadata={"help": "Retain term: distance of activations to the reference's, or `none`."}
    )

    def __post_init__(self):
        name = type(self).__name__.removesuffix("Config")
        if self.max_forget_loss is not None:
            raise ValueError(f"max_forget_loss watches log-likelihoods, which {name} does not compute. Leave it out.")
        super().__post_init__()
        if self.reentrant:
            raise ValueError(
                f"{name} reads activations inside the model, and reentrant checkpointing cuts their gradients. Pass "
                "activation_checkpointing_kwargs={'use_reentrant': False}."
            )

    @property
    def ends_at(self) -> int | None:
        """The last layer that rows go through; `None` where some go on to the head."""
        raise NotImplementedError

    @property
    def trained_patterns(self) -> list[str]:
        """Regular expressions of what trains by default, without an adapter."""
        raise NotImplementedError


def in_layers(layers: Iterable[int], names: Iterable[str] = ("",)) -> list[str]:
    """Regular expressions of the parameters of some layers that one of `names` matches."""
    numbers = "|".join(map(str, layers))
    return [rf"\.({numbers})\..*{name}" for name in names]


def check_layers(name: str, layers: list[int], model: nn.Module, method: str) -> None:
    """Raises `ValueError` for layers that the model has not, or an adapter whose other layers would be lost."""
    check_adapter_saved(model, method)
    count = len(layers_of(model))
    for layer in layers:
        check_layer(name, layer, count)


def patterns_up_to(model: nn.Module, layer: int, named: str, chosen: list[str] | None) -> list[str] | None:
    """Regular expressions of what trains where no layer above `layer`, of the setting `named`, is read: what was
    chosen, else the layers' own parameters; `None` for adapters, which are frozen above it."""
    if chosen:
        check_below(model, chosen, layer, named)
        return chosen
    if is_peft_model(model):
        freeze_outside(model, range(layer + 1))
        return None
    return names_up_to(model, layer, embeddings=False)


def tell_movement(trainer, name: str = "forget/loss") -> None:
    """Warns where what a run logged of its forget rows' activations is what it was."""
    losses = [entry[name] for entry in trainer.state.log_history if name in entry]
    if trainer.args.process_index or len(losses) < 2 or losses[-1] < (1 - MOVED) * losses[0]:
        return
    logger.warning(
        "%s was %.4g and is %.4g (%+.1f %%): the activations were hardly steered. Raise learning_rate (%g) "
        "or the number of steps, or lower retain_weight (%g).",
        name,
        losses[0],
        losses[-1],
        100 * (losses[-1] / losses[0] - 1),
        trainer.args.learning_rate,
        trainer.args.retain_weight,
    )
