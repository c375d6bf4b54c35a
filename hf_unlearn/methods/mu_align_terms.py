# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN's terms as functions of a row's logits, its defaults and its published variants."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fused import TileRows
from ..losses import distillation_rows, smoothed_nll_rows, uniform_kl_rows
from ..tails import Tail


# The README's numbers. It writes KL(model || uniform), whose gradient vanishes on what is memorised; the code, and
# this default, have the other direction.
DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 0.5,
    "temperature": 2.0,
    "top_k": 10,
    "kl_direction": "uniform_to_model",
    "tail": "topk_hinge",
    "label_smoothing": 0.0,
    "lambda_kd": 0.0,
    "kd_temperature": 2.0,
    "lambda_align": 0.0,
    "grad_ortho": "off",
    "learning_rate": 1e-5,
    "num_train_epochs": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "readme": {"kl_direction": "model_to_uniform"},
    # Without what is dead there (norms that never reach their cap), what only training would see (noise on forget
    # rows) and what needs two modalities.
    "code": {
        "alpha": 6.0,
        "beta": 8.0,
        "temperature": 1.0,
        "tail": "conf_hinge",
        "label_smoothing": 0.05,
        "lambda_kd": 0.6,
        "grad_ortho": "project",
        "learning_rate": 5e-4,
        "num_train_epochs": 8,
    },
    # Direction, temperature of the forget term, cap and learning rate are not published: ours.
    "paper": {
        "beta": 1.0,
        "temperature": 1.0,
        "tail": "logit_norm",
        "label_smoothing": 0.05,
        "lambda_kd": 0.5,
        "lambda_align": 0.1,
        "num_train_epochs": 8,
    },
}


@dataclass(frozen=True)
class ForgetTerms:
    r"""\\( \alpha T^2 KL \\) between uniform and \\( softmax(z / T) \\), plus \\( \beta \\) times a tail penalty.

    Args:
        alpha, beta, temperature (`float`): weights of the two terms; \\( T \\).
        direction (`str`): of the divergence, see [`~hf_unlearn.losses.uniform_kl`].
        tail ([`~hf_unlearn.tails.Tail`], *optional*): the penalty, where it is one of logits.
    """

    alpha: float
    beta: float
    temperature: float
    direction: str
    tail: Tail | None

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        uniform = self.temperature**2 * uniform_kl_rows(logits, self.direction, self.temperature)
        values, stats = self.alpha * uniform, self.confidence(logits.detach(), at.labels) | {"uniform": uniform}
        if self.tail is not None:
            tail = self.tail(logits)
            stats["tail"] = tail if at.weights is None else tail * at.weights
            values = values + self.beta * stats["tail"]
        return values, stats

    @staticmethod
    @torch.no_grad()
    def confidence(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """How sure the model is: log-probability of the label, largest probability, entropy over log K, each `[n]`."""
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) / math.log(log_p.shape[-1])
        logps = log_p.gather(-1, labels[:, None]).squeeze(-1)
        return {"logps": logps, "p_max": log_p.amax(-1).exp(), "entropy": entropy}


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
        values = smoothed_nll_rows(logits, at.labels, self.smoothing, self.tokens)
        stats = {"ce": values}
        if self.smoothing:
            with torch.no_grad():
                stats["logps"] = -smoothed_nll_rows(logits, at.labels)
        else:
            stats["logps"] = -values
        if self.lambda_kd:
            stats["kd"] = distillation_rows(logits, at.ref_logits, self.kd_temperature)
            values = values + self.lambda_kd * stats["kd"]
        return values, stats
