# SPDX-License-Identifier: Apache-2.0
"""How like the expected answer a generated one is: ROUGE-L recall, exact match."""

from collections.abc import Sequence
from typing import Any

from .result import MetricResult, direction_for, mean_result, proportion_result


def rouge(
    predictions: Sequence[str | None], references: Sequence[str], role: str = "retain", tokenizer: Any = None
) -> MetricResult:
    """ROUGE-L recall: longest common subsequence of words / words of the expected answer (Lin 2004), with stemming.

    Args:
        predictions (`Sequence[str]`):
            Generated answers; `None` where there is none.
        references (`Sequence[str]`):
            Expected answers. One without words is undefined: `rouge_score` knows only a-z and 0-9.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.
        tokenizer (*optional*):
            Object whose `tokenize(text)` gives words, for other scripts.

    Returns:
        `MetricResult`: value in [0, 1].
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    words = tokenizer or DefaultTokenizer(use_stemmer=True)
    scorer = RougeScorer(["rougeL"], tokenizer=words)
    per_item = [
        None
        if prediction is None or not words.tokenize(reference)
        else scorer.score(target=reference, prediction=prediction)["rougeL"].recall
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return mean_result("rouge", per_item, direction_for("rouge", role), variant="ROUGE-L recall")


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
    """
    per_item = [
        None if prediction is None else float(_normalized(prediction) == _normalized(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return proportion_result("exact_match", per_item, direction_for("exact_match", role))


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split())
