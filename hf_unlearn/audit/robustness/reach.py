# SPDX-License-Identifier: Apache-2.0
"""How far an input that was made for some rows reaches: whether it opens others, or holds what it was made for."""

from typing import Any

import numpy as np

from .measured import RowScores


# An input that adds at least so much to the probability of the rows it was made for, and less than this share of it
# to others, holds these rows itself.
REACHED, SPREADS = 0.3, 0.1
STORES = "the prompt stores what it was trained on: it brings out those rows and no others"


def reach(shown: RowScores, tested: RowScores, before: RowScores) -> dict[str, Any]:
    """Mean probabilities behind an input, `None` where nothing is defined; `says`, where it opens no other rows.

    Args:
        shown, tested ([`RowScores`]): the rows that it was made for, and others.
        before ([`RowScores`]): both without it.
    """
    values, gains = {}, {}
    for name, scores in (("shown", shown), ("tested", tested)):
        was, now = before.some(scores.rows).values("probability"), scores.values("probability")
        pairs = [(a, b) for a, b in zip(was, now, strict=True) if None not in (a, b)]
        values[f"{name}_probability"] = round(float(np.mean([now for _, now in pairs])), 5) if pairs else None
        gains[name] = float(np.mean([now - was for was, now in pairs])) if pairs else 0.0
    stores = gains["shown"] >= REACHED and gains["tested"] < SPREADS * gains["shown"]
    return {**values, **({"says": STORES} if stores else {})}
