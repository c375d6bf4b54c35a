# SPDX-License-Identifier: Apache-2.0
r"""An l1 penalty whose weight falls linearly to 0 (https://huggingface.co/papers/2304.04934), as a proximal step.

After each step \\( \theta \leftarrow \mathrm{sign}(\theta) \max(|\theta| - \eta \alpha (1 - s / S), 0) \\), with
\\( \eta \\) the learning rate and s the steps done before, of S. Weights become 0 exactly, which the gradient of a
penalty would not make them.
"""

from dataclasses import dataclass, field

import torch

from ..checks import check_number
from .addon import AddOn, Step
from .settings import AddOnSettings


@dataclass
class L1Arguments(AddOnSettings):
    """Settings of the l1 penalty; off unless `l1_weight` is above 0."""

    l1_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of an l1 penalty on the weights that train, which falls linearly to 0."},
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for a weight that cannot be."""
        check_number("l1_weight", self.l1_weight, at_least=0)

    def make_addon(self):
        """The penalty, or `None`."""
        return L1(self.l1_weight) if self.l1_weight else None


class L1(AddOn):
    """Shrinks the weights after each step.

    Args:
        weight (`float`): of the penalty, as training begins.
    """

    name, title = "l1", "The l1 penalty"

    def __init__(self, weight: float):
        self.weight = weight

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` where the weights that train are to be loaded in 16 bits. An adapter's are of 32."""
        if not adapter and (kind := (args.model_init_kwargs or {}).get("dtype")) is not None:
            _check_kind(getattr(torch, kind, None) if isinstance(kind, str) else kind)

    def setup(self, entry) -> None:
        """Raises `ValueError` where they are in 16 bits."""
        for weight in entry.model.parameters():
            if weight.requires_grad:
                _check_kind(weight.dtype)

    @torch.no_grad()
    def after_optimizer(self, step: Step) -> None:
        # The trainer counts the step, and changes the rate, only afterwards.
        now = self.weight * (1 - step.progress)
        for group in step.trainer.optimizer.param_groups:
            by = float(group["lr"]) * now
            for weight in group["params"]:
                if weight.requires_grad:
                    weight.copy_(torch.nn.functional.softshrink(weight, by))


def _check_kind(kind) -> None:
    """Refuses weights that a small step is lost of: it is below half a unit in the last place of most."""
    if isinstance(kind, torch.dtype) and kind.itemsize < 4:
        raise ValueError(
            f"l1_weight shrinks each weight by a little in every step, which rounds to nothing in {kind}. Load the "
            "model with `dtype: float32` (`bf16: true` computes in 16 bits all the same), or leave `l1_weight` out."
        )
