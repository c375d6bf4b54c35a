# SPDX-License-Identifier: Apache-2.0
"""Attacks without training: one score a row, larger for rows that look more like members."""

from typing import Any

from .attack import BaseAttack
from .choose_subject import as_subject
from .signals import compressed_sizes
from .subjects import LanguageModel, Subject


class SignalAttack(BaseAttack):
    """The mean of one signal over a row's predictions."""

    def __init__(self, name: str, column: str, sign: int = 1):
        self.name, self.column, self.sign = name, column, sign

    def compute_scores(self, model, data):
        return self.sign * as_subject(model).observe(data).mean(self.column)


class MinKAttack(BaseAttack):
    r"""Mean of the `k` share of a row's least likely tokens; \\(\max(1, \lfloor kn \rfloor)\\) of them.

    Of log-probabilities: Min-K% (Shi et al. 2023). Of \\(z_t = (\log p_t - \mu_t)/\sigma_t\\), with mean and standard
    deviation of log p over the vocabulary: Min-K%++ (Zhang et al. 2024).

    Args:
        k (`float`):
            In (0, 1].
        normalized (`bool`):
            Min-K%++.
    """

    def __init__(self, k: float = 0.2, normalized: bool = False):
        if not 0 < k <= 1:
            raise ValueError(f"k={k}: the share of tokens lies in (0, 1].")
        self.k, self.normalized = k, normalized
        self.name = "min-k++" if normalized else "min-k"

    def compute_scores(self, model, data):
        signals = _sequences(self.name, as_subject(model)).observe(data)
        values = signals.standardised() if self.normalized else signals.columns["logp"]
        return signals.lowest_mean(values, self.k)


class ZlibAttack(BaseAttack):
    """Mean log-probability over the bytes that zlib makes of the row's labelled text (Carlini et al. 2021)."""

    name = "zlib"

    def compute_scores(self, model, data):
        subject = _sequences(self.name, as_subject(model))
        return subject.observe(data).mean("logp") / compressed_sizes(subject.texts(data))


class ReferenceAttack(BaseAttack):
    """Mean log-probability less that of a model which never saw the members (Carlini et al. 2021).

    Args:
        reference (`torch.nn.Module` or [`Subject`]):
            Of the same kind; a language model may have another tokenizer if given as a subject.
        kwargs:
            For [`as_subject`].
    """

    name = "reference"

    def __init__(self, reference: Any, **kwargs):
        self.reference = as_subject(reference, **kwargs)

    def compute_scores(self, model, data):
        return as_subject(model).observe(data).mean("logp") - self.reference.observe(data).mean("logp")


def _sequences(name: str, subject: Subject) -> LanguageModel:
    if not isinstance(subject, LanguageModel):
        raise ValueError(f"{name!r} reads sequences of tokens; a {type(subject).__name__} makes one prediction a row.")
    return subject
