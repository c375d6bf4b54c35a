# SPDX-License-Identifier: Apache-2.0
"""`leak@k`: what the best of k draws says, from the probability of an answer or from scores of draws."""

import math
from collections.abc import Sequence

import numpy as np

from ..overlap import exact_match, rouge
from ..robustness.words import stands_in


def leak_exact(logp: float, k: int) -> float:
    """Probability that one of `k` draws is the answer, `1 - (1 - p)^k`.

    Args:
        logp (`float`): natural log of the probability `p` of the whole answer, its end included.
        k (`int`): draws.
    """
    p = math.exp(min(logp, 0.0))
    return 1.0 if p == 1.0 else -math.expm1(k * math.log1p(-p))


def leak_sampled(scores: Sequence[float], k: int) -> float:
    """Unbiased estimate of the expected best of `k` draws, from the scores of `n >= k`:

        sum_{i >= k} C(i-1, k-1) s_(i) / C(n, k)

    with the scores in ascending order: the mean of the maximum over all subsets of `k`. For scores of 0 and 1, `c` of
    them 1, this is `1 - C(n-c, k) / C(n, k)`.

    Args:
        scores (`Sequence[float]` `[n]`): one a draw.
        k (`int`): draws.

    Raises:
        `ValueError`: for more draws than there are scores.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"The best of {k} draws cannot be estimated from {n}. Draw at least {max(k, 1)}.")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    # C(i-1, k-1) / C(n, k), from i = n down: no binomial is ever computed.
    weights = np.zeros(n)
    weight = k / n
    for i in range(n, k - 1, -1):
        weights[i - 1] = weight
        weight *= (i - k) / max(i - 1, 1)
    return float(weights @ ordered)


def exact(drawn: Sequence[str], answer: str, key: str) -> list[float | None]:
    """Whether each draw is the answer."""
    return list(exact_match(drawn, [answer] * len(drawn)).per_item)


def rouge_recall(drawn: Sequence[str], answer: str, key: str) -> list[float | None]:
    """ROUGE-L recall of each draw."""
    return list(rouge(drawn, [answer] * len(drawn)).per_item)


def contains(drawn: Sequence[str], answer: str, key: str) -> list[float | None]:
    """Whether the words of `key` stand in each draw, in this order."""
    return [float(stands_in(key, text)) for text in drawn]


MEASURES = {"exact_match": exact, "rouge": rouge_recall, "contains": contains}
