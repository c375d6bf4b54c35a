# SPDX-License-Identifier: Apache-2.0
"""States below the first trained layer: constants, computed once, kept on disk and put in their place at every step.

Where only the head trains, a step is the head's work alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..activations import captured, decoder_layers
from ..fused.head import unwrapped
from ..stored.rows import CachedRows, Entry
from .passes import Pass


logger = logging.getLogger(__name__)


class FrozenPrefix(CachedRows):
    """The layers below the first that trains, as states on disk.

    Args:
        entry ([`~hf_unlearn.stored.rows.Entry`]):
            The run.
        layers (`nn.ModuleList`), depth (`int`):
            The policy's decoder layers, and how many of them are replaced; see [`frozen_depth`].
    """

    progress = "Frozen layers"

    def __init__(self, entry: Entry, layers: nn.ModuleList, depth: int):
        super().__init__(entry, entry.roles, layer=depth)
        self.layers, self.depth = layers, depth

    def lengths(self, role: str) -> dict[str, list[int]]:
        return {"states": [len(ids) for ids in self.roles[role]["input_ids"]]}

    @contextmanager
    def entered(self, call: Pass, device: torch.device) -> Iterator[None]:
        """While entered, the frozen layers hand on what they would have computed for the rows of `call`."""
        if self.store is None:
            yield
            return
        flat = torch.cat([self.values(role, "states", index) for role, index in call.rows.items()]).to(device)
        states = flat[None]
        if (mask := call.inputs.get("attention_mask")) is not None:
            states = flat.new_zeros((*mask.shape, flat.shape[-1]))
            states[mask.bool()] = flat
        replaced = self.layers[: self.depth]
        # Some layers have a forward of their own on the instance, as device maps put it there.
        own = [vars(layer).get("forward") for layer in replaced]
        for layer in replaced[:-1]:
            layer.forward = _hand_on
        replaced[-1].forward = lambda *args, **kwargs: states
        try:
            yield
        finally:
            for layer, forward in zip(replaced, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def like(self, trainer) -> dict[str, Tensor]:
        role = next(iter(self.roles))
        return self.predict(trainer, role, self.batch(role, [0]))

    def predict(self, trainer, role: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """States of the rows' real tokens."""
        with captured({"states": self.layers[self.depth - 1]}) as taken:
            trainer.forward_path.reference(trainer.model_wrapped, {role: batch})
        states = taken["states"]
        if trainer.forward_path.shape == "packed":
            return {"states": states[0]}
        # Passes may be narrower than the batch.
        return {"states": states[batch["attention_mask"][:, : states.shape[1]].bool()]}


def _hand_on(hidden: Tensor, *args, **kwargs) -> Tensor:
    return hidden


def frozen_depth(model: nn.Module) -> tuple[nn.ModuleList | None, int]:
    """The decoder layers, and how many of them, from the first, are constants during training.

    Returns:
        `tuple[nn.ModuleList | None, int]`: depth 0 where nothing can be kept: the embeddings train, the lowest layer
        trains, dropout makes the states random, or the layers are not found or do not return plain tensors.
    """
    core = unwrapped(model)
    embeddings = core.get_input_embeddings()
    layers = decoder_layers(core)
    if layers is None or any(parameter.requires_grad for parameter in embeddings.parameters()):
        return layers, 0
    depth = 0
    while depth < len(layers) and not any(parameter.requires_grad for parameter in layers[depth].parameters()):
        depth += 1
    config = core.config.get_text_config()
    random = any(isinstance(value, float) and value > 0 for name, value in vars(config).items() if "drop" in name)
    if depth and random:
        logger.info("States of the %d frozen layers are computed at every step: the model has dropout.", depth)
        return layers, 0
    return layers, depth
