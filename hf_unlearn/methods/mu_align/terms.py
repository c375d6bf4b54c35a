# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN's terms as functions of a row's logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fused import TileRows
from ...losses import bernoulli_kl_rows, uniform_kl_rows
from .tails import Tail


@dataclass(frozen=True)
class ForgetTerms:
    r"""\\( \alpha T^2 KL \\) between uniform and \\( softmax(z / T) \\), plus \\( \beta \\) times a tail penalty.

    Args:
        alpha, beta, temperature (`float`): weights of the two terms; \\( T \\).
        direction (`str`): of the divergence, see [`~hf_unlearn.losses.uniform_kl`].
        tail ([`~hf_unlearn.methods.mu_align.tails.Tail`], *optional*): the penalty, where it is one of logits.
        prior (`Tensor`, *optional*): `[K]`, each class's probability to pull to by itself instead of uniform;
            \\( \alpha \sum_c KL(Bern(\pi_c) \| Bern(\sigma(z_c))) \\) then is the first term.
    """

    alpha: float
    beta: float
    temperature: float
    direction: str
    tail: Tail | None
    prior: Tensor | None = None

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        if self.prior is None:
            name, first = "uniform", self.temperature**2 * uniform_kl_rows(logits, self.direction, self.temperature)
        else:
            name, first = "prior", bernoulli_kl_rows(logits, self.prior.to(logits.device))
        values, stats = self.alpha * first, self.confidence(logits.detach(), at) | {name: first}
        if self.tail is not None:
            tail = self.tail(logits)
            stats["tail"] = tail if at.weights is None else tail * at.weights
            values = values + self.beta * stats["tail"]
        return values, stats

    @staticmethod
    @torch.no_grad()
    def confidence(logits: Tensor, at: TileRows) -> dict[str, Tensor]:
        """How sure the model is: log-probability of the label, largest probability, entropy over log K, each `[n]`."""
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) / math.log(log_p.shape[-1])
        return {"logps": -at.nll(logits), "p_max": log_p.amax(-1).exp(), "entropy": entropy}


@dataclass(frozen=True)
class RetainTerms:
    r"""Cross-entropy, its labels smoothed, plus \\( \lambda_{kd} T^2 KL(p^{original}_T \| p_T) \\).

    Args:
        smoothing (`float`): share of the label that is spread over the tokens.
        lambda_kd, kd_temperature (`float`): weight and temperature of the distillation.
        tokens (`int`, *optional*): number of the vocabulary's entries that are tokens.
    """

    smoothing: float
    lambda_kd: float
    kd_temperature: float
    tokens: int | None = None

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        values = at.nll(logits, self.smoothing, self.tokens)
        stats = {"ce": values}
        if self.smoothing:
            with torch.no_grad():
                stats["logps"] = -at.nll(logits)
        else:
            stats["logps"] = -values
        if self.lambda_kd:
            stats["kd"] = at.distillation(logits, self.kd_temperature)
            values = values + self.lambda_kd * stats["kd"]
        return values, stats
