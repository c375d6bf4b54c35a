# SPDX-License-Identifier: Apache-2.0
"""The diagonal of the Fisher information, and noise that is large where it is small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


EPSILON = 1e-8
# What takes the place of a forgotten class's rows of the last layer.
CLASS_VARIANCE = 1e-4


class SquaredGradients:
    """Sums of squared gradients over rows, each row's own: the square of a batch's mean would be another quantity.

    Args:
        parameters (`Mapping[str, nn.Parameter]`): what is differentiated by; tied ones once.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)
        self.sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.rows = 0

    def add(self, losses: Sequence[Tensor]) -> None:
        """Adds one row: of its `losses`, negative log-likelihoods of as many draws, the mean squared gradient."""
        for loss in losses:
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            for total, gradient in zip(self.sums.values(), found, strict=True):
                if gradient is not None:
                    total.add_(gradient.float().square_(), alpha=1 / len(losses))
        self.rows += 1


@dataclass(frozen=True)
class NoiseRule:
    r"""The variance of a weight's noise, short of its scale: \\( (F + \epsilon)^{-2 \cdot exponent} \\), and what the
    released code does to it.

    Args:
        exponent (`float`): the noise's standard deviation goes as \\( F^{-exponent} \\).
        most, most_of_head (`float`): bounds of the variance; the second for the last layer.
        averages (`bool`): a tensor's row has one variance, the mean of its entries'.
        head_factor, vector_factor (`float`): for the last layer, and for tensors of one dimension.
    """

    exponent: float
    most: float = float("inf")
    most_of_head: float = float("inf")
    averages: bool = False
    head_factor: float = 1.0
    vector_factor: float = 1.0

    def variance(self, fisher: Tensor, in_head: bool) -> Tensor:
        """Of the shape of `fisher`.

        Args:
            fisher (`Tensor`): a parameter's diagonal.
            in_head (`bool`): whether it is the last layer's.
        """
        found = (fisher + EPSILON).pow(-2 * self.exponent)
        found = found.clamp(max=self.most_of_head if in_head else self.most)
        if self.averages and fisher.dim() > 1:
            found = found.mean(1, keepdim=True).expand_as(found)
        return found * (self.head_factor if in_head else 1) * (self.vector_factor if fisher.dim() == 1 else 1)


# The paper's equation; and the released code, which goes by other powers and bounds.
RULES = {
    "paper": NoiseRule(exponent=0.25),
    "code": NoiseRule(exponent=0.5, most=1e3, most_of_head=1e2, averages=True, head_factor=10.0, vector_factor=10.0),
}


class Noise:
    r"""Weights with noise, \\( w + \sqrt{a \cdot variance} \cdot n \\), for any \\( a \\) with the same \\( n \\).

    Args:
        parameters (`Mapping[str, nn.Parameter]`): what is changed.
        fisher (`dict[str, Tensor]`): their diagonals; overwritten.
        rule ([`NoiseRule`]): the variance.
        head (`set[str]`): names of the last layer's parameters.
        seed (`int`): decides \\( n \\).
        forgotten (`Sequence[int]`): classes whose rows of the last layer are drawn anew, around 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        fisher: dict[str, Tensor],
        rule: NoiseRule,
        head: set[str],
        seed: int,
        forgotten: Sequence[int] = (),
    ):
        self.parameters, self.head, self.forgotten = dict(parameters), head, list(forgotten)
        self.before = {name: p.detach().clone() for name, p in self.parameters.items()}
        generator = torch.Generator().manual_seed(seed)
        for name, diagonal in fisher.items():
            drawn = torch.randn(diagonal.shape, generator=generator).to(diagonal.device)
            std = rule.variance(diagonal, name in head).sqrt()
            if name in head and self.forgotten:
                std[self.forgotten] = CLASS_VARIANCE**0.5
            diagonal.copy_(std * drawn)
        self.unit = fisher

    @torch.no_grad()
    def put(self, scale: float) -> None:
        """The weights with the noise of a scale become the parameters'."""
        for name, parameter in self.parameters.items():
            found = self.before[name].float() + scale**0.5 * self.unit[name]
            if name in self.head and self.forgotten:
                found[self.forgotten] = self.unit[name][self.forgotten]
            parameter.copy_(found.to(parameter.dtype))
