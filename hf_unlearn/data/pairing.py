# SPDX-License-Identifier: Apache-2.0
"""Which rows of the roles meet in a step.

Every role is an endless stream: its rows in a seeded order, then again in another order, and so on. The pair at
position `p` of training takes the `p`-th row of each stream. A pair is thus a function of (seed, epoch, index) alone:
the same after a resume and on any number of workers, different on every rank (ranks get different indices), and no row
of the longer set is dropped - later epochs go on where the earlier ones stopped. A role that is tied to another
(`role_table.py`) has no order where that one is there: it takes the row at the index of that one's.
"""

from collections.abc import Iterator, Mapping

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

    An item is `{role: {"input_ids", "labels", "index"}}`, where `index` is the row's place in its role's dataset.
    """

    def __init__(self, roles: Mapping[str, Dataset], seed: int = 0, epoch_by: str = "forget"):
        if epoch_by != "longest" and epoch_by not in roles:
            raise ValueError(
                f"epoch_by={epoch_by!r} names no role that is trained on. Allowed: {[*roles, 'longest']}."
            )
        self.roles = dict(roles)
        for role, rows in self.roles.items():
            to = self._leader(role)
            if len(rows) != len(self.roles[to]):
                raise ValueError(
                    f"There are {len(rows)} {role} rows for {len(self.roles[to])} {to} rows; each belongs to the one "
                    "at its index."
                )
        # Seeds of orders count these alone: a tied role changes no other's order.
        self.drawn = [role for role in self.roles if self._leader(role) == role]
        self.length = max(map(len, self.roles.values())) if epoch_by == "longest" else len(self.roles[epoch_by])
        self.seed = seed
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, dict]:
        indices = {}
        for role in self.drawn:
            cycle, place = divmod(position, len(self.roles[role]))
            indices[role] = int(self._order(role, cycle)[place])
        pair = {}
        for role, rows in self.roles.items():
            index = indices[self._leader(role)]
            pair[role] = {**rows[index], "index": index}
        return pair

    def visited(self, role: str, positions: int) -> list[int]:
        """Rows of a role that stand at any of the first `positions` positions, in ascending order."""
        role = self._leader(role)
        count = len(self.roles[role])
        cycles = range(-(-positions // count))
        found = [self._order(role, cycle)[: positions - cycle * count] for cycle in cycles]
        return sorted(set(np.concatenate(found).tolist()))

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
