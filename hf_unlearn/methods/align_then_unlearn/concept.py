# SPDX-License-Identifier: Apache-2.0
"""What is to be forgotten, in words."""

from collections.abc import Sequence
from unicodedata import normalize


def concept_texts(args) -> list[str]:
    """Names, aliases and descriptions, in this order."""
    return [*args.concept, *(args.concept_aliases or ()), *(args.concept_descriptions or ())]


def check_concept(args, texts: Sequence[str]) -> list[str]:
    """Refuses a concept that no forget row speaks of: what is forgotten would be something else.

    Args:
        args ([`AlignThenUnlearnConfig`]):
            Names and aliases are read; descriptions need not occur.
        texts (`Sequence[str]`):
            The forget rows, without special tokens.

    Returns:
        `list[str]`: names that do not occur, where aliases may stand for them.

    Raises:
        `ValueError`: with what was searched for, and where.
    """
    folded = [_folded(text) for text in texts]
    names = [*args.concept, *(args.concept_aliases or ())]
    absent = [name for name in names if not any(occurs(_folded(name), text) for text in folded)]
    missing = [name for name in args.concept if name in absent]
    if len(absent) == len(names) or (missing and not args.concept_aliases):
        raise ValueError(
            f"concept={args.concept}: {', '.join(map(repr, absent))} occur{'s' if len(absent) == 1 else ''} in none "
            f"of the {len(texts)} forget rows (searched in their text, without special tokens, as whole words, upper "
            f"and lower case alike). The first begins: {texts[0][:120]!r}. Name what these rows are about, or give "
            "`concept_aliases` as the rows write it."
        )
    return missing


def occurs(name: str, text: str) -> bool:
    """Whether a name stands in a text and not inside a longer word. Only scripts that have cases are known to write
    words apart; in others, as in Chinese, a name is found wherever it stands."""
    name = name.strip()
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if not _one_word(text[max(start - 1, 0) : start], name[0]) and not _one_word(name[-1], text[end : end + 1]):
            return True
        start = text.find(name, start + 1)
    return False


def _folded(text: str) -> str:
    # Composed last: folding takes some letters apart.
    return normalize("NFC", text.casefold())


def _one_word(left: str, right: str) -> bool:
    return _joins(left) and _joins(right)


def _joins(character: str) -> bool:
    return character.isdecimal() or character.lower() != character.upper()
