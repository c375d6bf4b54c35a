# SPDX-License-Identifier: Apache-2.0
"""Two objectives whose gradients are kept from working against each other."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checks import check_choice
from .addon import AddOn, Backward
from .cost import Cost, Sizes
from .settings import AddOnSettings


SMALLEST = torch.finfo(torch.float32).tiny
GRAD_ORTHO = ("off", "project", "pcgrad")


@dataclass
class GradientConflictArguments(AddOnSettings):
    """Settings of gradient projection; `off` by default."""

    grad_ortho: str = field(
        default="off",
        metadata={
            "help": "Keep the forget gradient from working against the retain gradient: `off`, `project` or `pcgrad`."
        },
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for another value, or if no term keeps anything."""
        check_choice("grad_ortho", self.grad_ortho, GRAD_ORTHO)
        if self.grad_ortho != "off" and set(self.kept_terms.values()) == {"none"}:
            raise ValueError(
                "grad_ortho: for retain rows, whose gradient is compared with the forget gradient, and "
                "retain_loss='none'. Give retain rows and a retain term, or take grad_ortho='off'."
            )

    def make_addon(self):
        """The projection, or `None`."""
        return None if self.grad_ortho == "off" else GradientConflict(self.grad_ortho)


class TwoGradients:
    r"""Gradients \\( g_f \\) (forget) and \\( g_r \\) (what is kept), summed apart over the micro-batches of a step.

    `project`: \\( g_r + g_f - \frac{\langle g_f, g_r \rangle}{\| g_r \|^2} g_r \\), the forget gradient without its
    part along the other, whether the two agree or not (MU-ALIGN's code). `pcgrad`: where they conflict, each without
    its part along the other; otherwise their sum (https://huggingface.co/papers/2001.06782, algorithm 1).

    Args:
        parameters (`Iterable[nn.Parameter]`): what trains.
        backward (`Callable[[Tensor], None]`): adds a loss's gradients to the parameters'.
        mean (`Callable[[Tensor], Tensor]`, *optional*): of a tensor over processes, where there are several.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        backward: Callable[..., None],
        mean: Callable[[Tensor], Tensor] | None = None,
    ):
        self.parameters, self.backward, self.mean = [p for p in parameters if p.requires_grad], backward, mean
        self.sums: dict[str, list[Tensor | None]] = {}

    def add(self, name: str, loss: Tensor, retain_graph: bool = False) -> None:
        """Runs the backward of `loss` and adds its gradients to those of `name`."""
        if loss.requires_grad:
            self.backward(loss, retain_graph=retain_graph)
        taken = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        self.sums[name] = [_sum(*pair) for pair in zip(self.sums.get(name, [None] * len(taken)), taken, strict=True)]

    def _take(self, name: str) -> list[Tensor | None]:
        """The sums of a name, over all processes; a step may have none."""
        sums = self.sums.pop(name, [None] * len(self.parameters))
        if self.mean is None:
            return sums
        # A parameter may have a gradient on some processes alone.
        pairs = zip(self.parameters, sums, strict=True)
        return [self.mean(torch.zeros_like(p) if gradient is None else gradient) for p, gradient in pairs]

    @torch.no_grad()
    def combine(self, how: str) -> Tensor:
        """Puts the combined gradient on the parameters and starts anew; returns the cosine between the two."""
        forget, kept = self._take("forget"), self._take("kept")
        dot, forget_square, kept_square = _dot(forget, kept), _dot(forget, forget), _dot(kept, kept)
        # Of any size: a term that has hardly moved yet has a tiny gradient.
        by_forget, by_kept = torch.ones_like(dot), 1 - dot / kept_square.clamp(min=SMALLEST)
        if how == "pcgrad":
            conflict = dot < 0
            by_forget = torch.where(conflict, 1 - dot / forget_square.clamp(min=SMALLEST), 1.0)
            by_kept = torch.where(conflict, by_kept, 1.0)
        for parameter, own, other in zip(self.parameters, forget, kept, strict=True):
            parameter.grad = _sum(None if own is None else own * by_forget, None if other is None else other * by_kept)
        return dot / (forget_square * kept_square).sqrt().clamp(min=1e-30)


class GradientConflict(AddOn):
    """Two backward passes a micro-batch, one for the forget term and one for all others; combined once a step, when
    both are summed over micro-batches and averaged over processes.

    Args:
        how (`str`): `project` or `pcgrad`.
    """

    name = "grad_ortho"
    title = "grad_ortho"

    def __init__(self, how: str):
        self.how, self.gradients = how, None

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` for a run without a term that forgets."""
        if not any(map(method.forgets, roles := method.trained_roles_of(args))):
            raise ValueError(
                f"grad_ortho compares the forget gradient with others, and this run has {', '.join(roles)} rows. "
                "Take grad_ortho='off'."
            )

    def cost(self, sizes: Sizes) -> Cost:
        """Both sides' sums, which are combined into a third gradient; kept between micro-batches."""
        gradient = sizes.gradient * sizes.trained
        # Of three gradients one is the step's own, which is there between micro-batches too.
        return Cost(held=gradient, backward=gradient) if sizes.accumulation > 1 else Cost(backward=2 * gradient)

    def around_backward(self, terms: Mapping[str, Tensor], backward: Backward) -> Tensor:
        if self.gradients is None:
            self.gradients = TwoGradients(backward.model.parameters(), backward.run, backward.mean)
        sides = {"kept": [], "forget": []}
        for name, term in terms.items():
            sides["forget" if backward.forgets(name) else "kept"].append(term)
        # A method may take steps for one side alone.
        losses = {side: backward.share * sum(found) for side, found in sides.items() if found}
        for side, loss in losses.items():
            # Weights that autocast has rounded are shared by the two graphs.
            self.gradients.add(side, loss, retain_graph=side == "kept" and "forget" in losses)
        if backward.last:
            backward.log("forget/cosine_to_retain", self.gradients.combine(self.how))
        return sum(losses.values()).detach()


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _dot(a: list[Tensor | None], b: list[Tensor | None]) -> Tensor:
    products = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack(products).sum() if products else torch.zeros(())
