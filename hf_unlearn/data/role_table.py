# SPDX-License-Identifier: Apache-2.0
"""What roles there are: what the rows of a run are for. A method names those it reads in `needs_of`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """What rows are for.

    Args:
        name (`str`): in batches, needs, logs and cards.
        tied_to (`str`, *optional*): the role whose row it belongs to: row `i` meets row `i` of that one in every step,
            and the loss reads both together. Without, its rows are drawn in an order of their own.
        kept (`bool`): trained so that the model stays as it is, by the retain term.
        made_from (`str`, *optional*): the role whose rows it is made from, where it is not given.
    """

    name: str
    tied_to: str | None = None
    kept: bool = False
    made_from: str | None = None


FORGET, RETAIN, POISONED, ALTERNATE, GENERIC = "forget", "retain", "poisoned", "alternate", "generic"

# In the order in which a batch holds them.
ROLES = {
    role.name: role
    for role in (
        Role(FORGET),
        Role(RETAIN, kept=True),
        # Taken out of the forget rows, so that none of them is left to be tied to.
        Role(POISONED, kept=True, made_from=FORGET),
        Role(ALTERNATE, tied_to=FORGET, made_from=FORGET),
        # Forget rows in other words, that frozen models read in their place.
        Role(GENERIC, tied_to=FORGET, made_from=FORGET),
    )
}


def tied_to(role: str) -> str | None:
    """The role that a role's rows belong to, if any."""
    return ROLES[role].tied_to if role in ROLES else None


def tie(rows: dict) -> dict:
    """Hands the rows of tied roles to those that they belong to, in their `tied`.

    Args:
        rows (`dict`): role to what a method sees of it.
    """
    for role, found in rows.items():
        if tied_to(role) in rows:
            rows[tied_to(role)].tied[role] = found
    return rows
