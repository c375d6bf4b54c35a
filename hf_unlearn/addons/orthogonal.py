# SPDX-License-Identifier: Apache-2.0
r"""An adapter that reads what earlier ones do not (O3, https://huggingface.co/papers/2407.10223).

\\( \lambda \sum_l \sum_t \lVert A_{t,l} A_l^T \rVert_F^2 \\) over the layers l and the earlier adapters t, which are
frozen: the factors A alone, so that requests that are unlearned one after another use directions of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..models.adapter_factors import trained_factors
from .addon import Step
from .other_adapters import OtherAdapters, check_adapters
from .settings import AddOnSettings, check_idle


@dataclass
class OrthogonalArguments(AddOnSettings):
    """Settings of orthogonality to earlier adapters; off unless `orthogonal_to` is given. Published: 0.1."""

    orthogonal_to: list[str] | None = field(
        default=None,
        metadata={"help": "Folders of earlier LoRA adapters, whose directions the one that trains is kept from."},
    )
    orthogonal_weight: float = field(default=0.1, metadata={"help": "Weight of this penalty."})

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if not self.orthogonal_to:
            check_idle(self, OrthogonalArguments, "give `orthogonal_to`")
            return
        if isinstance(self.orthogonal_to, str):
            self.orthogonal_to = [self.orthogonal_to]
        check_number("orthogonal_weight", self.orthogonal_weight, above=0)
        check_adapters("orthogonal_to", self.orthogonal_to, self.lora_init)

    def make_addon(self):
        """The penalty, or `None`."""
        return Orthogonal(self.orthogonal_to, self.orthogonal_weight) if self.orthogonal_to else None


class Orthogonal(OtherAdapters):
    """The penalty above, a term of the loss.

    Args:
        folders (`list[str]`): of the earlier adapters.
        weight (`float`): lambda.
    """

    name, title = "orthogonal", "orthogonal_to"

    def __init__(self, folders: list[str], weight: float):
        self.folders, self.weight = folders, weight
        # Name of a layer to the earlier factors A of all adapters, one below the other.
        self.earlier: dict[str, Tensor] = {}

    def setup(self, entry) -> None:
        """Reads the earlier adapters. Raises `ValueError` for one that has no layer in common with this run's."""
        found: dict[str, list[Tensor]] = {}
        for folder in self.folders:
            for name, factors in self.read(folder, entry.model).items():
                found.setdefault(name, []).append(factors.a)
        self.earlier = {name: torch.cat(parts) for name, parts in found.items()}

    def loss(self, model: nn.Module, rows: Mapping, step: Step) -> Tensor:
        """The weighted penalty."""
        terms = []
        for name, factors in trained_factors(step.trainer.model, self.earlier).items():
            self.earlier[name] = self.earlier[name].to(factors.a)
            terms.append((self.earlier[name] @ factors.a.T).square().sum())
        value = torch.stack(terms).sum()
        step.log("orthogonal/loss", value)
        return self.weight * value
