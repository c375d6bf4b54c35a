# SPDX-License-Identifier: Apache-2.0
"""Weight averaging: the result is the mean of the weights that training went through."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn

from ..checks import check_whole
from .addon import AddOn, Step
from .cost import Cost, Sizes
from .settings import AddOnSettings, check_idle


logger = logging.getLogger(__name__)
MEAN = "mean."


@dataclass
class AverageArguments(AddOnSettings):
    """Settings of weight averaging; off unless `average_every` is given. Published: every 5 steps from step 100
    (https://huggingface.co/papers/2502.05374)."""

    average_every: int | None = field(
        default=None,
        metadata={"help": "The result is the mean of the weights after every so many steps. Default: the last ones."},
    )
    average_from: int = field(default=1, metadata={"help": "The first step whose weights are in the mean."})

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.average_every is None:
            check_idle(self, AverageArguments, "give `average_every`")
            return
        check_whole("average_every", self.average_every, at_least=1)
        check_whole("average_from", self.average_from, at_least=1)
        if self.max_steps > 0:
            check_reached(self.average_from, self.max_steps)

    def make_addon(self):
        """The mean, or `None`."""
        return None if self.average_every is None else WeightAverage(self.average_every, self.average_from)


def check_reached(first: int, steps: int) -> None:
    """Raises `ValueError` if training ends before the first step whose weights are in the mean."""
    if first > steps:
        raise ValueError(f"average_from={first}, and training ends with step {steps}. Give an earlier step.")


class WeightAverage(AddOn):
    """The mean, in float32, of the weights after steps `first`, `first + every`, ...

    Args:
        every (`int`): steps between two that are in the mean.
        first (`int`): the first one, counted from 1.
    """

    name, title = "average", "Weight averaging"

    def __init__(self, every: int, first: int):
        self.every, self.first = every, first
        self.mean: dict[str, Tensor] = {}
        self.count = 0
        self._update = get_swa_multi_avg_fn()

    def before_step(self, step: Step) -> None:
        check_reached(self.first, step.trainer.state.max_steps)

    @torch.no_grad()
    def after_optimizer(self, step: Step) -> None:
        # The trainer counts the step only afterwards.
        number = step.trainer.state.global_step + 1
        if number < self.first or (number - self.first) % self.every:
            return
        now = {name: weight.detach().float() for name, weight in step.parameters.items()}
        if self.count:
            mean = [self.mean[name].to(weight.device) for name, weight in now.items()]
            self._update(mean, list(now.values()), self.count)
            self.mean = dict(zip(now, mean, strict=True))
        else:
            self.mean = {name: weight.clone() for name, weight in now.items()}
        self.count += 1

    @torch.no_grad()
    def finish(self, trainer) -> None:
        """Puts the mean in the place of the last weights."""
        if not self.count:
            logger.warning("Training ended before step %d: the weights are the last ones, no mean.", self.first)
            return
        weights = dict(trainer.model.named_parameters())
        for name, mean in self.mean.items():
            weights[name].copy_(mean)

    def cost(self, sizes: Sizes) -> Cost:
        """A float32 mean."""
        return Cost(held=4 * sizes.trained)

    def state(self) -> dict[str, Any]:
        """The mean so far."""
        kept = {"count": self.count, "every": self.every, "from": self.first}
        return kept | {f"{MEAN}{name}": mean for name, mean in self.mean.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes the mean of a checkpoint.

        Raises:
            `ValueError`: if it is of other steps than this run's settings say.
        """
        made, now = (state["every"], state["from"]), (self.every, self.first)
        if made != now:
            raise ValueError(
                "The checkpoint was made with average_every={}, average_from={}, and this run has {}, {}. Give the "
                "same, or start anew.".format(*made, *now)
            )
        self.count = state["count"]
        self.mean = {name.removeprefix(MEAN): mean for name, mean in state.items() if name.startswith(MEAN)}
