# SPDX-License-Identifier: Apache-2.0
r"""An adapter that is driven away from another, which was trained on the forget rows
(https://huggingface.co/papers/2309.14054).

With \\( \Delta_l = s B_l A_l \\) what an adapter adds to layer l, and \\( \Delta'_l \\) the other's, the distance is
\\( d = \sum_l \lVert \Delta_l - \Delta'_l \rVert_F^2 / \sum_l \lVert \Delta'_l \rVert_F^2 \\), over the layers that
both have: 1 for a fresh adapter. The penalty is \\( e^{-d} \\), \\( 1 / d \\) or \\( -d \\), of which the last has
no bound.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_number
from ..models.adapter_factors import Factors, trained_factors
from .addon import Step
from .other_adapters import OtherAdapters, check_adapters
from .settings import AddOnSettings, check_idle


REPEL_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": lambda distance: (-distance).exp(),
    "inverse": torch.reciprocal,
    "linear": torch.neg,
}


@dataclass
class RepulsionArguments(AddOnSettings):
    """Settings of repulsion from another adapter; off unless `repel_from` is given. No weight is published for
    language models."""

    repel_from: str | None = field(
        default=None,
        metadata={"help": "Folder of a LoRA adapter trained on the forget rows, from which this run's is driven."},
    )
    repel_weight: float = field(default=1.0, metadata={"help": "Weight of this penalty."})
    repel_form: str = field(
        default="exponential",
        metadata={"help": "How it falls with the distance: `exponential`, `inverse`, or `linear`, without a bound."},
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.repel_from is None:
            check_idle(self, RepulsionArguments, "give `repel_from`")
            return
        check_number("repel_weight", self.repel_weight, above=0)
        check_choice("repel_form", self.repel_form, tuple(REPEL_FORMS))
        check_adapters("repel_from", [self.repel_from], self.lora_init)

    def make_addon(self):
        """The penalty, or `None`."""
        return None if self.repel_from is None else Repulsion(self.repel_from, self.repel_weight, self.repel_form)


class Repulsion(OtherAdapters):
    """The penalty above, a term of the loss.

    Args:
        folder (`str`): of the other adapter.
        weight (`float`): of the penalty.
        form (`str`): a name of `REPEL_FORMS`.
    """

    name, title = "repel", "repel_from"

    def __init__(self, folder: str, weight: float, form: str):
        self.folder, self.weight, self.form = folder, weight, REPEL_FORMS[form]
        self.given: dict[str, Factors] = {}

    def setup(self, entry) -> None:
        """Reads the other adapter.

        Raises:
            `ValueError`: if it has no layer in common with this run's, adds nothing there, or is this run's own start,
                which has no direction away from it.
        """
        self.given = self.read(self.folder, entry.model)
        self.size = sum(factors.square_norm().float() for factors in self.given.values())
        if not self.size > 0:
            raise ValueError(f"repel_from: the adapter in {self.folder!r} adds nothing. Give a trained one.")
        if self._distance(entry.model) < 1e-6:
            raise ValueError(
                f"repel_from={self.folder!r} is where the adapter starts, and there is no direction away from it. "
                "Start a fresh adapter (`peft_config`)."
            )

    def _distance(self, model: nn.Module) -> Tensor:
        own = trained_factors(model, self.given)
        squares = [factors.minus(self.given[name]).square_norm().float() for name, factors in own.items()]
        total = torch.stack(squares).sum()
        return total.clamp(min=0) / self.size.to(total)

    def loss(self, model: nn.Module, rows: Mapping, step: Step) -> Tensor:
        """The weighted penalty."""
        distance = self._distance(step.trainer.model)
        value = self.form(distance)
        step.log("repel/distance", distance)
        step.log("repel/loss", value)
        return self.weight * value
