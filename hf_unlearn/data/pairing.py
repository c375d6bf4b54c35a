# SPDX-License-Identifier: Apache-2.0
"""Which rows of the roles meet in a step.

Every role is an endless stream: its rows in a seeded order, then again in another order, and so on. The pair at
position `p` of training takes the `p`-th row of each stream. A pair is thus a function of (seed, epoch, index) alone:
the same after a resume and on any number of workers, different on every rank (ranks get different indices), and no row
of the longer set is dropped - later epochs go on where the earlier ones stopped. A role that is tied to another
(`role_table.py`) has no order where that one is there: it takes the row at the index of that one's. Where it has
several rows for each, one after the other, it takes the next of them in every order anew, or all of them together.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from torch.utils.data import Dataset, Sampler

from .role_table import tied_to


class RolePairs(Dataset):
    """Rows of several roles, paired by position.

    Args:
        roles (`Mapping[str, datasets.Dataset]`):
            Encoded rows of each role, in the order in which a batch holds them.
        seed (`int`):
            Decides every order.
        epoch_by (`str`):
            The role whose rows are each seen once an epoch, or `"longest"`.
        together (`Collection[str]`):
            Tied roles of which a pair takes all rows of a row at once.

    An item is `{role: {"input_ids", "labels", "index"}}`, where `index` is the row's place in its role's dataset; of a
    role in `together` it is a list of such rows.
    """

    def __init__(
        self,
        roles: Mapping[str, Dataset],
        seed: int = 0,
        epoch_by: str = "forget",
        together: Collection[str] = (),
    ):
        if epoch_by != "longest" and epoch_by not in roles:
            raise ValueError(
                f"epoch_by={epoch_by!r} names no role that is trained on. Allowed: {[*roles, 'longest']}."
            )
        self.roles = dict(roles)
        # Rows of each role for one of the role that it is tied to.
        self.counts = {role: len(rows) // len(self.roles[self._leader(role)]) for role, rows in self.roles.items()}
        for role, rows in self.roles.items():
            to = self._leader(role)
            if not len(rows) or len(rows) != self.counts[role] * len(self.roles[to]):
                raise ValueError(
                    f"There are {len(rows)} {role} rows for {len(self.roles[to])} {to} rows; as many belong to each "
                    "of these, those of the first coming first."
                )
        self.together = frozenset(together) - {role for role in self.roles if self._leader(role) == role}
        # Seeds of orders count these alone: a tied role changes no other's order.
        self.drawn = [role for role in self.roles if self._leader(role) == role]
        self.length = max(map(len, self.roles.values())) if epoch_by == "longest" else len(self.roles[epoch_by])
        self.seed = seed
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, dict | list[dict]]:
        cycles = {role: position // len(self.roles[role]) for role in self.drawn}
        places = {
            role: int(self._order(role, cycle)[position - cycle * len(self.roles[role])])
            for role, cycle in cycles.items()
        }
        pair = {}
        for role, rows in self.roles.items():
            leader = self._leader(role)
            found = [{**rows[index], "index": index} for index in self._own(role, places[leader], cycles[leader])]
            pair[role] = found if role in self.together else found[0]
        return pair

    def _own(self, role: str, place: int, cycle: int) -> list[int]:
        """The rows that a pair takes of a role, by the place of the row that leads it and the cycle of its stream."""
        count = self.counts[role]
        numbers = range(count) if role in self.together else (cycle % count,)
        return [place * count + number for number in numbers]

    def visited(self, role: str, positions: int) -> list[int]:
        """Rows of a role that stand at any of the first `positions` positions, in ascending order."""
        leader = self._leader(role)
        length = len(self.roles[leader])
        found: set[int] = set()
        for cycle in range(-(-positions // length)):
            for place in self._order(leader, cycle)[: positions - cycle * length].tolist():
                found.update(self._own(role, place, cycle))
        return sorted(found)

    def _leader(self, role: str) -> str:
        """The role whose order a role has: its own where that which it is tied to is not trained on."""
        to = tied_to(role)
        return to if to in self.roles else role

    def _order(self, role: str, cycle: int) -> np.ndarray:
        # One permutation a role is kept: positions rise, so an order is drawn again only where two cycles meet.
        kept = self._orders.get(role)
        if kept is None or kept[0] != cycle:
            number = self.drawn.index(role)
            kept = (cycle, np.random.default_rng([self.seed, number, cycle]).permutation(len(self.roles[role])))
            self._orders[role] = kept
        return kept[1]


class PairSampler(Sampler[int]):
    """Positions of one epoch in training order; the shuffling is the pairs' own."""

    def __init__(self, pairs: RolePairs):
        self.pairs = pairs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.pairs)
        return iter(range(start, start + len(self.pairs)))
