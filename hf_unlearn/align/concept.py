# SPDX-License-Identifier: Apache-2.0
"""What is to be forgotten, in words."""

from collections.abc import Sequence


def concept_texts(args) -> list[str]:
    """Names, aliases and descriptions, in this order."""
    return [*args.concept, *(args.concept_aliases or ()), *(args.concept_descriptions or ())]


def check_concept(args, texts: Sequence[str]) -> None:
    """Refuses a concept that no forget row speaks of: what is forgotten would be something else.

    Args:
        args ([`AlignThenUnlearnConfig`]):
            Names and aliases are read; descriptions need not occur.
        texts (`Sequence[str]`):
            The forget rows, without special tokens.

    Raises:
        `ValueError`: with what was searched for, and where.
    """
    folded = [text.casefold() for text in texts]
    names = [*args.concept, *(args.concept_aliases or ())]
    absent = [name for name in names if not any(name.casefold() in text for text in folded)]
    missing = [name for name in args.concept if name in absent]
    if len(absent) == len(names) or (missing and not args.concept_aliases):
        raise ValueError(
            f"concept={args.concept}: {', '.join(map(repr, absent))} occur{'s' if len(absent) == 1 else ''} in none "
            f"of the {len(texts)} forget rows (searched in their text, without special tokens, upper and lower case "
            f"alike). The first begins: {texts[0][:120]!r}. Name what these rows are about, or give `concept_aliases` "
            "as the rows write it."
        )
