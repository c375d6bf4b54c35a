# SPDX-License-Identifier: Apache-2.0
"""How much of the annotators stands behind an answer."""

from collections import Counter
from collections.abc import Sequence


# Share of the annotators from which on an answer counts fully: 3 of the 10 in VQA-v2
FULL_SHARE = 0.3


def target_weights(answers: Sequence[str]) -> dict[str, float]:
    """
    Soft target of every given answer: `min(count / (0.3 n), 1)`, which is `min(count / 3, 1)` for ten annotators.

    It is the accuracy a model gets for that answer in VQA-v2, up to the averaging over nine of the ten annotators of
    the official script.

    Args:
        answers (`Sequence[str]`):
            The annotators' answers.

    Returns:
        `dict[str, float]`: by answer, the most frequent first.
    """
    return {answer: min(count / (FULL_SHARE * len(answers)), 1.0) for answer, count in Counter(answers).most_common()}
