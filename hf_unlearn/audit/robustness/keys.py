# SPDX-License-Identifier: Apache-2.0
"""Key tokens: those of an answer that the original model knows and a retrained one does not."""

from collections.abc import Sequence

from .measured import RowScores


# Nats by which the original model predicts a key token better.
THRESHOLD = 1.0


def key_tokens(original: RowScores, retrained: RowScores, threshold: float = THRESHOLD) -> list[list[int]]:
    """Places `{t : logp_original(t) - logp_retrained(t) > threshold}` in each answer.

    The unlearned model has no part in the choice, so that it cannot favour it.

    Args:
        original, retrained ([`RowScores`]): of all rows of the set, before any attack.

    Returns:
        `list[list[int]]`: by place of the row in the set.
    """
    found: list[list[int]] = [[] for _ in range(max(original.rows, default=-1) + 1)]
    other = retrained.some(original.rows)
    for row, mine, theirs in zip(original.rows, original.logps, other.logps, strict=True):
        # A row that one of them leaves undefined has no tokens there.
        found[row] = [t for t, (o, r) in enumerate(zip(mine, theirs, strict=False)) if o - r > threshold]
    return found


def known_share(scores: RowScores, keys: Sequence[Sequence[int]]) -> list[float | None]:
    """Whether all key tokens of a row are the most likely ones; `None` for a row without any."""
    return scores.values("known", keys)
