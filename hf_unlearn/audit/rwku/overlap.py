# SPDX-License-Identifier: Apache-2.0
"""ROUGE-L recall as RWKU computes it, which differs from `rouge_score`'s."""

from collections.abc import Sequence

from ..overlap import answer_pairs
from ..result import MetricResult, direction_for, mean_result


def published_rouge(
    predictions: Sequence[str | None], references: Sequence[str], role: str = "retain"
) -> MetricResult:
    r"""ROUGE-L recall of the PyPI package `rouge` 1.0.1, by which RWKU's tables were made.

    \\(|\bigcup_{r,p} LCS(r, p)| / |\bigcup_r r|\\) over sentences r of the expected and p of the generated answer, as
    sets of words. Words are what white space parts, with upper case and punctuation as they are; a sentence ends at
    every period. So `stephen king` finds nothing of `Stephen King`: read `rouge_score` beside it.

    An answer without words counts 0. There the package raises; RWKU's code puts a word in place of an empty answer,
    and ends at one of periods only.

    Args:
        predictions (`Sequence[str]`):
            Generated answers; `None` where there is none.
        references (`Sequence[str]`):
            Expected answers; one without words is undefined.
        role (`str`):
            `"forget"` or `"retain"`; decides the direction.

    Returns:
        `MetricResult`: `rouge`, in [0, 1]. It is another metric than [`~hf_unlearn.audit.rouge`]: `variant` says so,
        and reports and gates hold no two variants against each other.
    """
    predictions, references = answer_pairs(predictions, references)
    per_item = [
        None if prediction is None else published_recall(prediction, reference)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return mean_result("rouge", per_item, direction_for("rouge", role), variant="ROUGE-L recall, as published (RWKU)")


def published_recall(prediction: str, reference: str) -> float | None:
    """[`published_rouge`] of one answer; `None` for a reference without words."""
    expected, found = _sentences(reference), set()
    words = {word for sentence in expected for word in sentence}
    if not any(words):
        return None
    for sentence in expected:
        for said in _sentences(prediction.strip()):
            found |= _common_words(sentence, said)
    return len(found) / len(words)


def _sentences(text: str) -> list[list[str]]:
    # A sentence of white space is a sentence with an empty word there.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(left: list[str], right: list[str]) -> set[str]:
    """Words of a longest common subsequence; of several, the one that the package takes."""
    lengths = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if a == b else max(lengths[i - 1][j], lengths[i][j - 1])
    i, j, words = len(left), len(right), set()
    while i and j:
        if left[i - 1] == right[j - 1]:
            words.add(left[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
