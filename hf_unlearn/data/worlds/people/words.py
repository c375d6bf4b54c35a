# SPDX-License-Identifier: Apache-2.0
"""Pseudo-words: every name and every value of the world is one."""

import random
from collections.abc import Collection


_ONSETS = "bdgklmnrtv"
_VOWELS = "aeiou"
_CODAS = "lnrs"

# Half of those there are, so that drawing distinct ones stays quick
MAX_WORDS = (len(_ONSETS) * len(_VOWELS) * len(_CODAS)) ** 2 // 2


def pseudo_words(count: int, rng: random.Random, avoid: Collection[str] = ()) -> list[str]:
    """
    Draw distinct capitalised pseudo-words of two syllables.

    All have six letters, so that none is part of another: a search for one value in a text cannot hit another value.

    Args:
        count (`int`):
            How many, at most `MAX_WORDS`.
        rng (`random.Random`):
            Source of randomness.
        avoid (`Collection[str]`, *optional*):
            Lower-case words that must not appear (the English words of the corpus).

    Returns:
        `list[str]`: `count` words such as `"Belnor"`.
    """
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        word = "".join(rng.choice(letters) for letters in (_ONSETS, _VOWELS, _CODAS) * 2)
        if word not in avoid:
            drawn.setdefault(word.capitalize())
    return list(drawn)
