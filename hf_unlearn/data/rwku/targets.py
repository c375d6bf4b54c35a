# SPDX-License-Identifier: Apache-2.0
"""Whom to forget: a target's name or id, as the user wrote it."""

import random
from collections.abc import Mapping, Sequence
from difflib import get_close_matches


# How many others give rows to keep. RWKU has none; its corpora of 199 others would be 100,000 rows.
OTHERS = 20


def find_targets(wanted: Sequence[str] | None, known: Mapping[str, str]) -> dict[str, str]:
    """Ids and names of the targets that are meant.

    Args:
        wanted (`Sequence[str]`):
            Names (upper and lower case alike) or ids.
        known (`Mapping[str, str]`):
            Id to name.

    Raises:
        `ValueError`: for none, or one that is unknown (with near names) or named twice.
    """
    if not wanted:
        some = ", ".join(map(repr, list(known.values())[:3]))
        raise ValueError(f"RWKU has {len(known)} targets, among them {some}. Give `forget_targets`: names or ids.")
    by_word = {name.casefold(): id for id, name in known.items()} | {id.casefold(): id for id in known}
    found: dict[str, str] = {}
    for word in wanted:
        id = by_word.get(word.casefold())
        if id is None:
            part = [known_word for known_word in by_word if word and word.casefold() in known_word]
            near = part or get_close_matches(word.casefold(), by_word, n=3, cutoff=0.5)
            names = list(dict.fromkeys(known[by_word[match]] for match in near))[:3]
            hint = f"Did you mean {' or '.join(map(repr, names))}?" if names else "Give names or ids as RWKU has them."
            raise ValueError(f"RWKU has no target {word!r} among its {len(known)}. {hint}")
        if id in found:
            raise ValueError(f"forget_targets names {known[id]!r} twice.")
        found[id] = known[id]
    return found


def other_targets(found: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """Names of at most [`OTHERS`] other targets, drawn once and for all for these targets."""
    others = [name for id, name in known.items() if id not in found]
    return random.Random(f"rwku {sorted(found)}").sample(others, min(OTHERS, len(others)))
