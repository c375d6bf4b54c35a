# SPDX-License-Identifier: Apache-2.0
"""RWKU's membership sets: how much a text looks as if the model had never been trained on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..generation import pad_token_id
from ..model_checks import check_sound
from ..privacy.signals import SOFTMAX_COLUMNS, Signals, compressed_sizes, token_signals
from ..result import MetricResult, finite, mean_result
from ..scoring import score_rows


# Share of a text's tokens; the published code prints this one of ten.
K = 0.2


def membership(
    model: torch.nn.Module, tokenizer: Any, texts: Sequence[str], *, role: str = "forget", **options: Any
) -> dict[str, MetricResult]:
    """Scores of raw texts, without chat template or EOS, as in RWKU's eval_mia.py.

    `loss` is the mean negative log-likelihood a token, in nats: the number that RWKU's tables show, times 100, as FM
    (forget set, to rise) and RM (retain set, to stay). `zlib` divides it by the bytes that zlib makes of the text;
    `min_k` and `min_k++` are those of the 20 % least likely tokens. All four are larger for what is less known; RWKU's
    code prints their negatives.

    Args:
        model, tokenizer:
            As in [`~hf_unlearn.audit.audit_model`].
        texts (`Sequence[str]`):
            They are not cut.
        role (`str`):
            `"forget"` or `"retain"`; decides the direction.
        options:
            Of [`score_rows`].

    Returns:
        `dict[str, MetricResult]`: a text is undefined without a predicted token, with a loss that is not finite, and,
        for Min-K, with fewer than five predicted tokens.
    """
    encoded = [list(tokenizer(text)["input_ids"]) for text in texts]
    rows = [{"input_ids": ids, "labels": ids} for ids in encoded]
    found = score_rows(model, rows, pad_token_id=pad_token_id(tokenizer), scores_of=token_signals, **options)
    check_sound(model, [np.isfinite(row[0]).any() for row in found if len(row[0])], "texts")
    signals = Signals.of_rows(found, SOFTMAX_COLUMNS)
    loss = -signals.mean("logp")
    enough = signals.lengths >= 1 / K
    scores = {
        "loss": (loss, "mean NLL a token, nats"),
        "zlib": (loss / compressed_sizes(texts), "loss a byte of zlib"),
        "min_k": (np.where(enough, -signals.lowest_mean(signals.columns["logp"], K), np.nan), "Min-20%"),
        "min_k++": (np.where(enough, -signals.lowest_mean(signals.standardised(), K), np.nan), "Min-20%++"),
    }
    direction = "higher" if role == "forget" else "lower"
    return {
        name: mean_result(name, [finite(value) for value in values], direction, variant=variant)
        for name, (values, variant) in scores.items()
    }
