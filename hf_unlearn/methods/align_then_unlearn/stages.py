# SPDX-License-Identifier: Apache-2.0
"""The stages of a run, and their optimizers in one."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch.optim import Optimizer


ALIGN, UNLEARN = "align", "unlearn"


@dataclass(frozen=True)
class Stage:
    """Some steps in which the same is trained.

    Args:
        kind (`str`): `align` (the head trains) or `unlearn` (the model does).
        round (`int`): counted from 0.
        start, stop (`int`): its first step and the one after its last.
    """

    kind: str
    round: int
    start: int
    stop: int


def make_stages(rounds: int, first_align: int, align: int, unlearn: int) -> list[Stage]:
    """Rounds of alignment and unlearning; the first alignment has a length of its own."""
    stages, step = [], 0
    for number in range(rounds):
        for kind, steps in ((ALIGN, align if number else first_align), (UNLEARN, unlearn)):
            stages.append(Stage(kind, number, step, step + steps))
            step += steps
    return stages


def stage_at(stages: list[Stage], step: int) -> Stage:
    """The stage that the step after `step` others belongs to; the last one beyond the end."""
    return next((stage for stage in stages if step < stage.stop), stages[-1])


class StagedOptimizer(Optimizer):
    """Several optimizers as one, of which only the active one steps; the others keep their state meanwhile.

    Trainer knows one optimizer: this one is prepared, scheduled, saved and loaded as such.

    Args:
        optimizers (`Mapping[str, Optimizer]`): by stage; over different parameters.
        active (`str`): the first that steps.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], active: str):
        self.optimizers, self.active = dict(optimizers), active
        groups = self._groups()
        super().__init__([{"params": group["params"]} for group in groups], {})
        # Their own dicts, so that a rate set here is set there.
        self.param_groups = groups

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def step(self, closure=None):
        return self.optimizers[self.active].step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: Mapping[str, dict]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        # Loading puts new dicts in the groups' place.
        self.param_groups = self._groups()
