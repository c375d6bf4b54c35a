# SPDX-License-Identifier: Apache-2.0
"""The order of SCRUB's rows: a whole epoch of forget rows, a whole epoch of retain rows, and so on."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch.utils.data import Dataset

from ...data.role_table import FORGET, RETAIN


MAX, MIN = FORGET, RETAIN


@dataclass(frozen=True)
class Phase:
    """One epoch over the rows of one role.

    Args:
        role (`str`): `forget`, whose divergence from the teacher is maximised, or `retain`, whose is minimised.
        epoch (`int`): the SCRUB epoch that it belongs to, counted from 1.
    """

    role: str
    epoch: int


def phase_order(epochs: int, msteps: int, min_first: bool = False) -> list[Phase]:
    """The phases of a run: the first `msteps` epochs have one of each, the others retain rows only.

    Args:
        epochs, msteps (`int`): \\( E \\) and the epochs that maximise.
        min_first (`bool`): within an epoch, retain rows go first.
    """
    pair = (MIN, MAX) if min_first else (MAX, MIN)
    return [Phase(role, epoch) for epoch in range(1, epochs + 1) for role in (pair if epoch <= msteps else (MIN,))]


class PhasedRows(Dataset):
    """All rows of a run in their order, as pairs of which each holds a row of one role, or none.

    A phase has whole optimizer steps of its own: where its rows do not fill them, the batches of all its steps hold
    about as many rows each, and the places left over are empty (`{}`). An order is a function of (seed, role, epoch),
    and a position's row of that, so a run goes on anywhere, and every process has as many batches.

    Args:
        roles (`Mapping[str, datasets.Dataset]`): encoded rows of both roles.
        phases (`Sequence[Phase]`): in their order.
        sizes (`Mapping[str, int]`): role to the rows of one batch on one process, at most `places`.
        places (`int`): positions of one batch on one process.
        batches_a_step (`int`): those of all processes and accumulated ones.
        seed (`int`): decides every order.
    """

    def __init__(
        self,
        roles: Mapping[str, Dataset],
        phases: Sequence[Phase],
        sizes: Mapping[str, int],
        places: int,
        batches_a_step: int,
        seed: int = 0,
    ):
        self.roles, self.phases, self.places, self.seed = dict(roles), list(phases), places, seed
        rows = [len(self.roles[phase.role]) for phase in self.phases]
        self.steps = [-(-n // (sizes[p.role] * batches_a_step)) for n, p in zip(rows, self.phases, strict=True)]
        self._batches = [steps * batches_a_step for steps in self.steps]
        self._starts = [0, *accumulate(self._batches)]
        self._orders: dict[Phase, np.ndarray] = {}

    def __len__(self) -> int:
        return self._starts[-1] * self.places

    def __getitem__(self, position: int) -> dict[str, dict]:
        # Trainer's epochs are not these: what it counts on from an earlier one begins anew.
        batch, place = divmod(position % len(self), self.places)
        number = bisect_right(self._starts, batch) - 1
        phase = self.phases[number]
        share = self._share(phase, batch - self._starts[number], self._batches[number])
        if place >= len(share):
            return {}
        index = int(share[place])
        return {phase.role: {**self.roles[phase.role][index], "index": index}}

    def visited(self, role: str, positions: int) -> list[int]:
        """Every row of a role: each phase sees all of its rows."""
        return list(range(len(self.roles[role])))

    def epoch_ends(self) -> list[int]:
        """Optimizer steps after which an epoch is over."""
        ends: dict[int, int] = {}
        for phase, end in zip(self.phases, accumulate(self.steps), strict=True):
            ends[phase.epoch] = end
        return list(ends.values())

    def phase_of_steps(self) -> Iterator[Phase]:
        """The phase of every optimizer step."""
        for phase, steps in zip(self.phases, self.steps, strict=True):
            yield from [phase] * steps

    def _share(self, phase: Phase, batch: int, batches: int) -> np.ndarray:
        order = self._order(phase)
        # Fewer rows than batches: some rows are in several, so that no process is without.
        own = order[batch * len(order) // batches : (batch + 1) * len(order) // batches]
        return own if len(own) else order[[batch % len(order)]]

    def _order(self, phase: Phase) -> np.ndarray:
        if phase not in self._orders:
            number = list(self.roles).index(phase.role)
            generator = np.random.default_rng([self.seed, number, phase.epoch])
            self._orders = {phase: generator.permutation(len(self.roles[phase.role]))}
        return self._orders[phase]


class WithoutEmpty:
    """A collator that is handed no empty places.

    Args:
        collator ([`~hf_unlearn.data.collator.RoleBatches`]): makes a batch of the others.
    """

    def __init__(self, collator):
        self.collator, self.roles = collator, collator.roles

    def __call__(self, rows):
        return self.collator([row for row in rows if row])
