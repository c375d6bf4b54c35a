# SPDX-License-Identifier: Apache-2.0
"""How well a model knows given answers by heart: probability, exact memorization, extraction strength."""

import math
from collections.abc import Sequence

import numpy as np

from .inputs import flags, log_probabilities, nested_log_probabilities
from .result import MetricResult, direction_for, mean_result


def probability(
    logps: Sequence[float | None],
    wrong_logps: Sequence[Sequence[float | None]] | None = None,
    role: str = "retain",
) -> MetricResult:
    r"""Probability of the answers, per token.

    \\(p(a) = P(a \mid q)^{1/|a|}\\), the geometric mean over the answer's tokens (Maini et al. 2024, TOFU, section
    2.2; as in their code, with the exponent everywhere). With wrong answers the
    variant `"normalized"`, \\(p(a) / (p(a) + \sum_i p(w_i))\\), used for real authors and world facts.

    Args:
        logps (`Sequence[float]` `[items]`):
            Mean log-probability a token of each right answer (EOS counts as a token); `None` where it has none.
        wrong_logps (`Sequence[Sequence[float]]` `[items][wrong answers]`, *optional*):
            The same of the wrong answers.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.

    Returns:
        `MetricResult`: value in [0, 1]; NaN and infinity are undefined items.

    Raises:
        `ValueError`: for what are no log-probabilities, as a loss above 0, or lists of other lengths.
    """
    direction, logps = direction_for("probability", role), log_probabilities("logps", logps)
    if wrong_logps is None:
        per_item = [None if logp is None else math.exp(logp) for logp in logps]
        return mean_result("probability", per_item, direction)
    per_item = [
        None if right is None or not wrong or None in wrong else math.exp(right - np.logaddexp.reduce([right, *wrong]))
        for right, wrong in zip(logps, nested_log_probabilities("wrong_logps", wrong_logps, len(logps)), strict=True)
    ]
    return mean_result("probability", per_item, direction, variant="normalized")


def exact_memorization(correct: Sequence[Sequence[bool]], role: str = "retain") -> MetricResult:
    """Share of an answer's tokens that are the model's first choice when the tokens before them are given.

    Tirumala et al. 2022, *Memorization without overfitting*.

    Args:
        correct (`Sequence[Sequence[bool]]` `[items][tokens]`):
            Whether each token was the most likely one. Tokens that close a text (EOS, end of turn) are left out by
            `audit_model`: every model knows them.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.

    Returns:
        `MetricResult`: value in [0, 1]; items without tokens are undefined.

    Raises:
        `ValueError`: for anything but true and false.
    """
    per_item = [float(np.mean(row)) if row else None for row in flags("correct", correct)]
    return mean_result("exact_memorization", per_item, direction_for("exact_memorization", role))


def extraction_strength(correct: Sequence[Sequence[bool]], role: str = "retain") -> MetricResult:
    r"""Share of an answer that follows by itself from its beginning.

    \\(1 - k/n\\), where \\(k\\) is the smallest number of leading tokens that must be given for all later ones to be
    the model's first choice (Carlini et al. 2021). 0 if the last token is wrong, 1 if none is.

    Args:
        correct (`Sequence[Sequence[bool]]` `[items][tokens]`):
            As in [`exact_memorization`].
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`; decides the direction.

    Returns:
        `MetricResult`: value in [0, 1]; items without tokens are undefined.

    Raises:
        `ValueError`: for anything but true and false.
    """
    per_item = []
    for row in flags("correct", correct):
        wrong = np.flatnonzero(~np.asarray(row, dtype=bool))
        prefix = wrong[-1] + 1 if len(wrong) else 0
        per_item.append(float(1 - prefix / len(row)) if row else None)
    return mean_result("extraction_strength", per_item, direction_for("extraction_strength", role))
