# SPDX-License-Identifier: Apache-2.0
"""Losses of classifiers whose labels are shares of one class among all, or a probability for each class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import at_least_float32


def soft_nll_rows(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    r"""Cross-entropy of each row with soft targets of one class among all.

    \\( -\sum_c ((1 - \epsilon) \frac{t_c}{\sum t} + \frac{\epsilon}{K}) \log p_c \\); 0 for a row without any target.

    Args:
        logits (`Tensor`): `[N, K]`.
        targets (`Tensor`): `[N, K]`, 0 or more; taken as shares of their sum.
        smoothing (`float`): \\( \epsilon \\), the share that is spread over all classes.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    log_p, targets = at_least_float32(logits).log_softmax(-1), targets.to(at_least_float32(logits).dtype)
    total = targets.sum(-1, keepdim=True)
    shares = (1 - smoothing) * targets / total.clamp(min=torch.finfo(total.dtype).tiny) + smoothing / logits.shape[-1]
    return -torch.where(total.squeeze(-1) > 0, (shares * log_p).sum(-1), 0.0)


def bernoulli_nll_rows(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    r"""Binary cross-entropy of each row, sum over classes: what ViLT's own loss is the mean over rows of.

    \\( -\sum_c [t_c \log \sigma(z_c) + (1 - t_c) \log \sigma(-z_c)] \\)

    Args:
        logits (`Tensor`): `[N, K]`.
        targets (`Tensor`): `[N, K]`, between 0 and 1.
        smoothing (`float`): \\( \epsilon \\): targets become \\( (1 - \epsilon) t_c + \epsilon / K \\).

    Returns:
        `Tensor`: `[N]`, nats.
    """
    logits = at_least_float32(logits)
    targets = (1 - smoothing) * targets.to(logits.dtype) + smoothing / logits.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


def bernoulli_kl_rows(logits: Tensor, p: Tensor) -> Tensor:
    r"""\\( \sum_c KL(Bern(p_c) \| Bern(\sigma(z_c))) \\) of each row.

    Args:
        logits (`Tensor`): `[N, K]`.
        p (`Tensor`): probabilities that broadcast to `[N, K]`; no gradient is taken.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    logits = at_least_float32(logits)
    p = p.detach().to(logits.dtype)
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)
    return (F.binary_cross_entropy_with_logits(logits, p.expand_as(logits), reduction="none") - entropy).sum(-1)


def bernoulli_distillation_rows(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""[`distillation_rows`] for classes that are predicted each by itself, `[N]`:
    \\( T^2 \sum_c KL(Bern(\sigma(z^{teacher}_c / T)) \| Bern(\sigma(z_c / T))) \\)."""
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).sigmoid()
    return temperature**2 * bernoulli_kl_rows(at_least_float32(logits) / temperature, teacher)
