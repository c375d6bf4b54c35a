# SPDX-License-Identifier: Apache-2.0
"""A loss that is to be low around the weights: its gradient is taken at neighbours of them, and that of all other
terms at the weights themselves (https://huggingface.co/papers/2502.05374)."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..addon import TERMS, AddOn, Step
from ..cost import Cost, Sizes


logger = logging.getLogger(__name__)
Gradients = list[Tensor | None]


class Neighbours(AddOn):
    r"""The gradient of a step is \\( \frac{1}{n} \sum_i \nabla L_s(\theta + \delta_i) + \nabla L_o(\theta) \\), L_s
    the smoothed terms and L_o the others. A step takes a pass more for each shift, and one where there are others.

    Args:
        of (`str`): the smoothed terms, `forget` or `all`.
    """

    requires = frozenset({TERMS})
    # Shifts a step.
    count = 1

    def __init__(self, of: str):
        self.of = of
        self._looked = False

    def shifts(self, step: Step, weights: list[nn.Parameter], gradients: Gradients) -> Iterator[list[Tensor | None]]:
        """What is added to the weights, for one neighbour after the other.

        Args:
            step ([`Step`]): that is made.
            weights (`list[nn.Parameter]`): that train.
            gradients (`list[Tensor]`): of the smoothed terms at the weights; `None` for weights without one.
        """
        raise NotImplementedError

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` if there is no term to be smoothed."""
        if self.of == "forget" and not any(map(method.forgets, roles := method.trained_roles_of(args))):
            raise ValueError(
                f"{self.title} is about the forget term, and this run has {', '.join(roles)} rows. Leave it out, or "
                f"pass {self.name}_terms='all'."
            )

    @torch.no_grad()
    def before_optimizer(self, step: Step) -> None:
        weights = list(step.parameters.values())
        smoothed = [name for name in step.terms if self.of == "all" or step.forgets(name)]
        if not smoothed:
            # A method may take steps for the others alone.
            return
        others = [name for name in step.terms if name not in smoothed]
        gradients, kept = _taken(weights), [None] * len(weights)
        if others:
            kept = self._repeated(step, weights, others)
            # Where rounding makes it inexact, the direction alone is: what is trained on is taken anew.
            gradients = [_plus(whole, other, by=-1) for whole, other in zip(gradients, kept, strict=True)]
        entered = [weight.clone() for weight in weights]
        total, count = [None] * len(weights), 0
        for shift in self.shifts(step, weights, gradients):
            for weight, by in zip(weights, shift, strict=True):
                if by is not None:
                    weight.add_(by)
            self._look(weights, entered, shift)
            # No name is left for what was added: it would be held through the next pass.
            total = [_plus(*pair) for pair in zip(total, self._repeated(step, weights, smoothed), strict=True)]
            count += 1
            for weight, before in zip(weights, entered, strict=True):
                weight.copy_(before)
        for weight, around, other in zip(weights, total, kept, strict=True):
            weight.grad = _plus(None if around is None else around / count, other)

    def cost(self, sizes: Sizes) -> Cost:
        """While rows go through again: the weights, their shift and a gradient; those of the other terms, if there are
        some, and of earlier shifts."""
        others = self.of == "forget" and sizes.others
        gradients = 1 + others + (self.count > 1)
        repeated = (2 * sizes.weight + gradients * sizes.gradient) * sizes.trained
        return Cost(repeated=repeated, passes=self.count + others)

    def _repeated(self, step: Step, weights: list[nn.Parameter], terms: list[str]) -> Gradients:
        with torch.enable_grad():
            step.repeat(terms)
        return _taken(weights)

    def _look(self, weights, entered, shift) -> None:
        """Warns, once, if the weights round the shift away: the step would be the plain one at more cost."""
        if self._looked:
            return
        self._looked = True
        moved = [w.float() - e.float() for w, e, by in zip(weights, entered, shift, strict=True) if by is not None]
        meant, there = norm_of(shift), norm_of(moved)
        if there < 0.5 * meant:
            logger.warning(
                "%s shifts the weights by %.3g, of which their %s keeps %.3g. Load the model in float32 "
                "(model_init_kwargs={'dtype': 'float32'}; bf16=True still computes in bfloat16).",
                self.title, meant, weights[0].dtype, there,
            )  # fmt: skip


class SharpnessAware(Neighbours):
    r"""Sharpness-aware minimisation: \\( \delta = \rho \nabla L_s / \lVert \nabla L_s \rVert \\), of all micro-batches
    and processes together (https://huggingface.co/papers/2010.01412).

    Args:
        of (`str`): the smoothed terms.
        rho (`float`): length of the shift, of all weights together.
    """

    name, title = "sam", "SAM"

    def __init__(self, of: str, rho: float):
        super().__init__(of)
        self.rho = rho

    def shifts(self, step, weights, gradients):
        """One: along the gradient."""
        norm = norm_of(gradients)
        step.log("sam/grad_norm", norm)
        # A gradient of 0 has no direction, and none is taken.
        by = torch.where(norm > 0, self.rho / norm, 0.0)
        yield [None if gradient is None else gradient * by for gradient in gradients]


class RandomSmoothing(Neighbours):
    r"""Random smoothing: each \\( \delta_i \\) is Gaussian, the same on every process.

    Args:
        of (`str`): the smoothed terms.
        std (`float`): standard deviation of each entry.
        draws (`int`): their number.
        seed (`int`): of the run; step and draw decide the noise with it, so that a resumed run draws the same.
    """

    name, title = "smoothing", "Random smoothing"

    def __init__(self, of: str, std: float, draws: int, seed: int):
        super().__init__(of)
        self.std, self.draws, self.seed = std, draws, seed
        self.count = draws

    def shifts(self, step, weights, gradients):
        """As many as `draws`."""
        for draw in range(self.draws):
            generator = torch.Generator(weights[0].device)
            number = step.trainer.state.global_step * self.draws + draw
            generator.manual_seed((self.seed << 40) + number & (2**63 - 1))
            yield [
                torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype) * self.std
                for weight in weights
            ]


def norm_of(tensors: Gradients) -> Tensor:
    """The Euclidean norm of all entries together, in float32."""
    norms = [tensor.float().norm() for tensor in tensors if tensor is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _taken(weights: list[nn.Parameter]) -> Gradients:
    found = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return found


def _plus(a: Tensor | None, b: Tensor | None, by: float = 1) -> Tensor | None:
    if b is None:
        return a
    if a is None:
        return b if by == 1 else b * by
    return a + b * by
