# SPDX-License-Identifier: Apache-2.0
"""How varied an answer's words are: RWKU's fluency."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import log2

from ..inputs import texts as checked_texts
from ..result import MetricResult, mean_result


# What an n-gram's entropy counts, by n; their mean is taken.
WEIGHTS = {2: 2 / 3, 3: 4 / 3}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def fluency(texts: Sequence[str]) -> MetricResult:
    """Weighted mean of the entropies of an answer's bigrams and trigrams, in bits (RWKU, section 4.3).

    It grows with the length of the answer, and fluent nonsense has as much of it as sense. An answer with fewer words
    than an n-gram has entropy 0.

    Args:
        texts (`Sequence[str]`):
            Answers to instructions.

    Returns:
        `MetricResult`: `entropy`, in bits; RWKU's tables show it times 100.
    """
    per_item = [
        sum(weight * ngram_entropy(words, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)
        for words in map(split_words, checked_texts("texts", texts))
    ]
    return mean_result("entropy", per_item, "higher", variant="bigrams 2/3, trigrams 4/3, bits")


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of a text's n-grams."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = counts.total()
    return sum(-count / total * log2(count / total) for count in counts.values())


def split_words(text: str) -> list[str]:
    """Words and marks as NLTK's word tokenizer parts them. It first splits sentences by a model that must be
    downloaded; here they end at `.`, `!` or `?` before white space."""
    return [word for sentence in SENTENCE_END.split(text) for word in _tokenizer().tokenize(sentence)]


@cache
def _tokenizer():
    # Installed with `rouge_score`, and in need of no data.
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()
