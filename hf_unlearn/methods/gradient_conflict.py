# SPDX-License-Identifier: Apache-2.0
"""Two objectives whose gradients are kept from working against each other."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..addons.addon import AddOn, Backward


GRAD_ORTHO = ("off", "project", "pcgrad")


class TwoGradients:
    r"""Gradients \\( g_f \\) (forget) and \\( g_r \\) (what is kept), summed apart over the micro-batches of a step.

    `project`: \\( g_r + g_f - \frac{\langle g_f, g_r \rangle}{\| g_r \|^2} g_r \\), the forget gradient without its
    part along the other, whether the two agree or not (MU-ALIGN's code). `pcgrad`: where they conflict, each without
    its part along the other; otherwise their sum (https://huggingface.co/papers/2001.06782, algorithm 1).

    Args:
        parameters (`Iterable[nn.Parameter]`): what trains.
        backward (`Callable[[Tensor], None]`): adds a loss's gradients to the parameters'.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], backward: Callable[..., None]):
        self.parameters, self.backward = [p for p in parameters if p.requires_grad], backward
        self.sums: dict[str, list[Tensor | None]] = {}

    def add(self, name: str, loss: Tensor, retain_graph: bool = False) -> None:
        """Runs the backward of `loss` and adds its gradients to those of `name`."""
        if loss.requires_grad:
            self.backward(loss, retain_graph=retain_graph)
        taken = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        self.sums[name] = [_sum(*pair) for pair in zip(self.sums.get(name, [None] * len(taken)), taken, strict=True)]

    @torch.no_grad()
    def combine(self, how: str) -> Tensor:
        """Puts the combined gradient on the parameters and starts anew; returns the cosine between the two."""
        forget, kept = (self.sums.pop(name) for name in ("forget", "kept"))
        dot, forget_square, kept_square = _dot(forget, kept), _dot(forget, forget), _dot(kept, kept)
        by_forget, by_kept = torch.ones_like(dot), 1 - dot / (kept_square + 1e-12)
        if how == "pcgrad":
            conflict = dot < 0
            by_forget = torch.where(conflict, 1 - dot / (forget_square + 1e-12), 1.0)
            by_kept = torch.where(conflict, by_kept, 1.0)
        for parameter, own, other in zip(self.parameters, forget, kept, strict=True):
            parameter.grad = _sum(None if own is None else own * by_forget, None if other is None else other * by_kept)
        return dot / (forget_square * kept_square).sqrt().clamp(min=1e-30)


class GradientConflict(AddOn):
    """Two backward passes a micro-batch, one for the forget term and one for all others; combined once a step.

    Args:
        how (`str`): `project` or `pcgrad`.
    """

    name = "grad_ortho"
    title = "grad_ortho"

    def __init__(self, how: str):
        self.how, self.gradients = how, None

    def around_backward(self, terms: Mapping[str, Tensor], backward: Backward) -> Tensor:
        if self.gradients is None:
            self.gradients = TwoGradients(backward.model.parameters(), backward.run)
        kept = backward.share * sum(term for name, term in terms.items() if name != "forget")
        forget = backward.share * terms["forget"]
        # Weights that autocast has rounded are shared by the two graphs.
        self.gradients.add("kept", kept, retain_graph=True)
        self.gradients.add("forget", forget)
        if backward.last:
            backward.log("forget/cosine_to_retain", self.gradients.combine(self.how))
        return (kept + forget).detach()


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _dot(a: list[Tensor | None], b: list[Tensor | None]) -> Tensor:
    products = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack(products).sum() if products else torch.zeros(())
