# SPDX-License-Identifier: Apache-2.0
"""Multiple choice with letters balanced: a model that always says "A" is not one that knows a quarter."""

from collections.abc import Sequence

import numpy as np


def chosen(logps: Sequence[Sequence[float | None]], letters: Sequence[Sequence[str]]) -> list[float | None]:
    """Whether the right letter is the most likely one, once each letter's mean over all questions is subtracted.

    Args:
        logps (`Sequence[Sequence[float]]` `[n][options]`): log-probabilities of letters, the right one's first.
        letters (`Sequence[Sequence[str]]` `[n][options]`): which letters they are of.

    Returns:
        `list[float | None]`: 1 or 0 a question (a tie is 0); `None` where a log-probability is not known.
    """
    known = [
        (letter, value)
        for row, names in zip(logps, letters, strict=True)
        for letter, value in zip(names, row, strict=True)
        if value is not None
    ]
    means = {name: np.mean([value for letter, value in known if letter == name]) for name in {n for n, _ in known}}
    found: list[float | None] = []
    for row, names in zip(logps, letters, strict=True):
        if None in row:
            found.append(None)
            continue
        right, *others = (value - means[name] for name, value in zip(names, row, strict=True))
        found.append(float(all(right > other for other in others)))
    return found
