# SPDX-License-Identifier: Apache-2.0
"""How like the expected answer a generated one is: ROUGE-L, exact match."""

from collections.abc import Sequence
from typing import Any

from .inputs import same_length, texts
from .result import MetricResult, direction_for, mean_result, proportion_result


ROUGE_MEASURES = {"recall": "recall", "f1": "fmeasure"}


def rouge(
    predictions: Sequence[str | None],
    references: Sequence[str],
    role: str = "retain",
    tokenizer: Any = None,
    measure: str = "recall",
    stem: bool = True,
) -> MetricResult:
    """ROUGE-L: longest common subsequence of words, of a generated and an expected answer (Lin 2004).

    Args:
        predictions (`Sequence[str]`):
            Generated answers; `None` where there is none.
        references (`Sequence[str]`):
            Expected answers. One without words is undefined: `rouge_score` knows only a-z and 0-9.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.
        tokenizer (*optional*):
            Object whose `tokenize(text)` gives words, for other scripts.
        measure (`str`):
            `"recall"` divides by the words of the expected answer; `"f1"` is the harmonic mean with the same over the
            generated one (MUSE).
        stem (`bool`):
            Whether words are compared by their stems.

    Returns:
        `MetricResult`: value in [0, 1].

    Raises:
        `ValueError`: for another measure, one text in place of a list, or lists of other lengths.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    if measure not in ROUGE_MEASURES:
        raise ValueError(f"measure={measure!r}; allowed: {', '.join(ROUGE_MEASURES)}.")
    predictions, references = answer_pairs(predictions, references)
    words = tokenizer or DefaultTokenizer(use_stemmer=stem)
    scorer = RougeScorer(["rougeL"], tokenizer=words)
    per_item = [
        None
        if prediction is None or not words.tokenize(reference)
        else getattr(scorer.score(target=reference, prediction=prediction)["rougeL"], ROUGE_MEASURES[measure])
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    variant = f"ROUGE-L {'recall' if measure == 'recall' else 'F1'}{'' if stem else ', no stemmer'}"
    return mean_result("rouge", per_item, direction_for("rouge", role), variant=variant)


def exact_match(predictions: Sequence[str | None], references: Sequence[str], role: str = "retain") -> MetricResult:
    """Share of generated answers equal to the expected ones, but for upper case and white space.

    Args:
        predictions (`Sequence[str]`):
            Generated answers; `None` where there is none.
        references (`Sequence[str]`):
            Expected answers.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.

    Returns:
        `MetricResult`: value in [0, 1]; the interval is Clopper-Pearson.

    Raises:
        `ValueError`: for one text in place of a list, or lists of other lengths.
    """
    predictions, references = answer_pairs(predictions, references)
    per_item = [
        None if prediction is None else float(_normalized(prediction) == _normalized(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return proportion_result("exact_match", per_item, direction_for("exact_match", role))


def answer_pairs(predictions: Sequence[str | None], references: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Generated and expected answers, checked.

    Raises:
        `ValueError`: for one text in place of a list, an item that is no text, or lists of other lengths.
    """
    predictions, references = texts("predictions", predictions, gaps=True), texts("references", references)
    same_length({"predictions": len(predictions), "references": len(references)})
    return predictions, references


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
