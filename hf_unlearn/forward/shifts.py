# SPDX-License-Identifier: Apache-2.0
"""Something added to what decoder layers put out, for the rows of one role.

A hook would not do: under activation checkpointing a layer runs again in the backward pass, when hooks are gone. The
sum is made by a module around the layer, outside of what is recomputed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..models.activations import layers_of, other_layers
from .passes import Pass


class ShiftedLayer(nn.Module):
    """A decoder layer, with something added to its output.

    Args:
        layer (`nn.Module`): the model's own.
        number (`int`): which it is.
        places (`Tensor`): `[N]`, in the flattened positions `[B * T]`.
        by (`Tensor`): `[N, d]`, what is added there.
        made (`set[int]`): gets the number once something was added.
    """

    def __init__(self, layer: nn.Module, number: int, places: Tensor, by: Tensor, made: set[int]):
        super().__init__()
        self.layer, self.number, self.places, self.by, self.made = layer, number, places, by, made

    def __getattr__(self, name: str):
        # Models ask their layers for more than a forward, such as the kind of attention.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["layer"], name)

    def forward(self, *args, **kwargs):
        output = self.layer(*args, **kwargs)
        if not isinstance(output, (tuple, list)):
            return self._sum(output)
        return type(output)([self._sum(output[0]), *output[1:]])

    def _sum(self, states: Tensor) -> Tensor:
        if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[-1] != self.by.shape[-1]:
            form = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(
                f"Layer {self.number} puts out {form}, not a state of {self.by.shape[-1]} numbers for every token "
                "`[B, T, d]`: what perturbs states cannot be used with this architecture."
            )
        self.made.add(self.number)
        by = self.by.to(states.device, states.dtype)
        return states.flatten(0, 1).index_add(0, self.places.to(states.device), by).view_as(states)


@dataclass(frozen=True)
class Shifts:
    """What is added to the rows of a role.

    Args:
        role (`str`): whose rows.
        by (`Mapping[int, Tensor]`): layer to `[N, d]`, for the role's `N` tokens that are no padding, in the order of
            its rows; with or without a gradient.
        made (`set[int]`): layers whose output something was added to.
    """

    role: str
    by: Mapping[int, Tensor]
    made: set[int] = field(default_factory=set)

    @contextmanager
    def entered(self, model: nn.Module, call: Pass) -> Iterator[None]:
        """While entered, the model's layers put out their states with what is added.

        Args:
            model (`nn.Module`): wrapped or not.
            call ([`Pass`]): that is about to be made; its `picks` are all tokens that are no padding.
        """
        if self.role not in call.picks:
            yield
            return
        layers, places = list(layers_of(model)), call.picks[self.role]
        for number, by in self.by.items():
            layers[number] = ShiftedLayer(layers[number], number, places, by, self.made)
        with other_layers(model, layers):
            yield
