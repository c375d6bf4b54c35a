# SPDX-License-Identifier: Apache-2.0
"""Attention values of the first tokens, from a pass over these tokens alone: attention is causal, so what comes after
them cannot change them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import fused
from ...models.activations import captured, check_layer, layers_of, stopped_after, value_projections


@dataclass(frozen=True)
class Prefix:
    """Which tokens and layers are looked at.

    Args:
        tokens (`int`): how many, `n`.
        first (`int`): position of the first one, 0 or 1.
        layers (`tuple[int, ...]`): in ascending order, `L` of them.
    """

    tokens: int
    first: int
    layers: tuple[int, ...]

    @classmethod
    def of(cls, args, model: nn.Module) -> "Prefix":
        """As [`ValueNormArguments`] say, for a model.

        Raises:
            `ValueError`: if a layer is not there, or its values cannot be read.
        """
        count = len(layers_of(model))
        layers = range(count) if args.value_norm_layers is None else sorted(set(args.value_norm_layers))
        for layer in layers:
            check_layer("value_norm_layers", layer, count)
        value_projections(model)
        return cls(args.value_norm_tokens, 0 if args.value_norm_include_first else 1, tuple(layers))

    def values(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The values of right-padded rows, all heads of a layer together.

        Args:
            model (`nn.Module`): as the trainer calls it; layers above the last one looked at do not run.
            batch (`Mapping[str, Tensor]`): `input_ids` and `attention_mask` `[B, T]`.

        Returns:
            `tuple[Tensor, Tensor]`: values `[B, L, n, d_v]`, float32, and the bool mask `[B, n]` of tokens that are
            there.
        """
        inputs = {name: batch[name][:, : self.first + self.tokens] for name in ("input_ids", "attention_mask")}
        found = {layer: (module, part) for layer, module, part in value_projections(model) if layer in self.layers}
        modules = {layer: module for layer, (module, _) in found.items()}
        with captured(modules) as taken, stopped_after(model, self.layers[-1]):

            def compute(hidden: Tensor, head) -> dict[str, Tensor]:
                own = [taken[layer] if part is None else taken[layer][..., part] for layer, (_, part) in found.items()]
                # FSDP2 gathers a layer for the backward when its output is due, and values branch off before that.
                through = 0 * hidden[:, :1, :1].sum()
                return {"values": torch.stack(own, dim=1)[:, :, self.first :] + through}

            values = fused.head_forward(model, {**inputs, "use_cache": False}, compute)["values"]
        mask = inputs["attention_mask"][:, self.first :].bool()
        missing = self.tokens - mask.shape[1]
        # Norms in half precision have a grid as coarse as the differences that are looked for.
        return F.pad(values.float(), (0, 0, 0, missing)), F.pad(mask, (0, missing))
