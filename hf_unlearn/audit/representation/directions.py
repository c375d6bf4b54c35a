# SPDX-License-Identifier: Apache-2.0
"""Directions: is what was forgotten behind one direction of each layer, which can be taken away?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...data.formats import IGNORE_INDEX
from ...models.activations import captured, layers_of
from .states import Rows, replaced


def prompt_means(model: nn.Module, rows: Rows, desc: str = "Prompt states") -> Tensor:
    """Mean states over the tokens of prompts, without their first, whose state is large and the same everywhere.

    Returns:
        `Tensor` `[layers, d]`: each row of equal weight, in float64.
    """
    modules = dict(enumerate(layers_of(model)))

    def compute(batch, inputs, labels):
        with captured(modules) as taken:
            model(**inputs)
        asked = (labels == IGNORE_INDEX) & inputs["attention_mask"].bool()
        # Whole texts have no prompt: all of their tokens are it.
        asked = torch.where(asked[:, 1:].any(1, keepdim=True), asked, inputs["attention_mask"].bool())
        asked[:, 0] = False
        every = torch.stack([taken[layer] for layer in modules]).double()
        return [every[:, i, asked[i]].mean(1).cpu() for i in range(len(batch))]

    return torch.stack(rows.map(model, compute, desc)).mean(0)


def units(vectors: Tensor) -> dict[int, Tensor]:
    """Unit vectors `[d]` by layer; a layer whose vector is 0 has none."""
    return {layer: (v / v.norm()).float() for layer, v in enumerate(vectors) if v.norm() > 0}


def random_units(vectors: Tensor, seed: int) -> dict[int, Tensor]:
    """Random directions for the same layers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vectors.shape, generator=generator, dtype=torch.float64)
    return {layer: v for layer, v in units(drawn).items() if vectors[layer].norm() > 0}


@contextmanager
def without(model: nn.Module, directions: Mapping[int, Tensor]) -> Iterator[None]:
    """While entered, each layer's output has no part along its direction: `h - (h . d) d`."""
    modules: Sequence[nn.Module] = layers_of(model)

    def taken_away(direction: Tensor):
        def change(hidden: Tensor) -> Tensor:
            d = direction.to(hidden)
            return hidden - (hidden @ d)[..., None] * d

        return change

    with replaced({modules[layer]: taken_away(d) for layer, d in directions.items()}):
        yield
