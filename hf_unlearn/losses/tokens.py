# SPDX-License-Identifier: Apache-2.0
"""Forget terms over single tokens: of log-probabilities `[N]`, or a row's mean of them, and of logits `[N, V]` with
the tokens that they predict."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import at_least_float32


def simnpo_loss(logps: Tensor, lengths: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    r"""SimNPO, NPO on a row's mean log-probability and without a reference (https://huggingface.co/papers/2410.07163).

    \\( -\frac{2}{\beta} E[\log \sigma(-\frac{\beta}{|y|} \log \pi_\theta(y|x) - \beta \delta)] \\)

    Its gradient is that of ascent on the row's mean times
    \\( 2 \pi_\theta^{\beta/|y|} / (\pi_\theta^{\beta/|y|} + e^{-\beta \delta}) \\).

    Args:
        logps (`Tensor`): `[B]`, sums over tokens.
        lengths (`Tensor`): `[B]`, \\( |y| \\), predicted tokens of each row; a row without any has no gradient.
        beta (`float`): inverse temperature, above 0; ascent on the rows' means is the limit at 0.
        delta (`float`): margin of a token's negative log-likelihood, nats; the paper's \\( \gamma \\) is
            \\( \beta \delta \\).

    Returns:
        `Tensor`: a scalar, mean over rows.
    """
    nll = -at_least_float32(logps) / lengths.clamp(min=1)
    return -F.logsigmoid(beta * (nll - delta)).mean() * 2 / beta


def wtnpo_loss(logps: Tensor, ref_logps: Tensor, beta: float, alpha: float) -> Tensor:
    r"""WTNPO (https://huggingface.co/papers/2502.19301, its code): TNPO's weights times \\( p_t^\alpha \\).

    Weighted ascent, \\( E[w_t \log p_t] \\) with \\( w_t = 2 p_t^{\beta + \alpha} / (p_t^\beta + p_{ref,t}^\beta) \\)
    constant; the gradient at \\( \alpha = 0 \\) is [`tnpo_loss`]'s.

    Args:
        logps, ref_logps (`Tensor`): `[N]`, of the predicted tokens under the policy and the reference.
        beta, alpha (`float`): exponents, 0 or more.

    Returns:
        `Tensor`: a scalar, mean over tokens; 0 where there are none.
    """
    log_p, log_ref = at_least_float32(logps.detach()), at_least_float32(ref_logps.detach())
    return _weighted_ascent(logps, 2 * (alpha * log_p).exp() * (beta * (log_p - log_ref)).sigmoid())


def wga_loss(logps: Tensor, beta: float) -> Tensor:
    r"""Weighted gradient ascent (https://huggingface.co/papers/2502.19301).

    \\( E[p_t^\beta \log p_t] \\) with the weight constant: tokens fade as they are forgotten.

    Args:
        logps (`Tensor`): `[N]`, log-probabilities of the predicted tokens, nothing else among them.
        beta (`float`): exponent, 0 or more; 0 is gradient ascent.

    Returns:
        `Tensor`: a scalar, mean over tokens; 0 where there are none.
    """
    return _weighted_ascent(logps, (beta * at_least_float32(logps.detach())).exp())


def satimp_loss(logps: Tensor, beta1: float, beta2: float) -> Tensor:
    r"""SatImp, ascent weighted by saturation and importance (https://huggingface.co/papers/2505.11953).

    \\( E[p_t^{\beta_1} (1 - p_t)^{\beta_2} \log p_t] \\) with the weight constant.

    Args:
        logps (`Tensor`): `[N]`, log-probabilities of the predicted tokens, nothing else among them.
        beta1 (`float`): exponent of saturation, 0 or more: fades on tokens that are forgotten.
        beta2 (`float`): exponent of importance, 0 or more: fades on tokens that are certain; [`wga_loss`] is 0.

    Returns:
        `Tensor`: a scalar, mean over tokens; 0 where there are none.
    """
    log_p = at_least_float32(logps.detach())
    return _weighted_ascent(logps, (beta1 * log_p).exp() * (-torch.expm1(log_p)).clamp(min=0).pow(beta2))


def _weighted_ascent(logps: Tensor, weights: Tensor) -> Tensor:
    return (weights * at_least_float32(logps)).sum() / max(len(logps), 1)


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """`logits [N, V]` without a gradient, those of the labels at minus infinity."""
    return at_least_float32(logits.detach()).scatter(-1, labels[:, None], -math.inf)


def ceu_rows(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy unlearning (CE-U, https://huggingface.co/papers/2503.01224) of each token.

    \\( -\sum_v q_v \log p_v \\), \\( q = softmax(z) \\) with \\( z_y = -\infty \\), constant: the model's own
    prediction without the label. Its gradient is \\( p - q \\).

    Args:
        logits (`Tensor`): `[N, V]`.
        labels (`Tensor`): `[N]`, \\( y \\).

    Returns:
        `Tensor`: `[N]`, nats.
    """
    target = _without_label(logits, labels).softmax(-1)
    return -_expected(target, at_least_float32(logits).log_softmax(-1))


def undial_rows(logits: Tensor, ref_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    r"""UNDIAL (https://huggingface.co/papers/2402.10052): distillation from the reference, the label's logit lowered.

    \\( -\sum_v q_v \log p_v \\), \\( q = softmax(z_{ref} - \beta 1_y) \\)

    Args:
        logits (`Tensor`): `[N, V]`.
        ref_logits (`Tensor`): `[N, V]`; no gradient is taken.
        labels (`Tensor`): `[N]`, \\( y \\), of predicted tokens only.
        beta (`float`): what the logit is lowered by, 0 or more.

    Returns:
        `Tensor`: `[N]`, nats; at least the entropy of \\( q \\).
    """
    adjusted = at_least_float32(ref_logits.detach())
    target = adjusted.scatter_add(-1, labels[:, None], adjusted.new_full((len(labels), 1), -beta)).softmax(-1)
    return -_expected(target, at_least_float32(logits).log_softmax(-1))


def whp_targets(logits: Tensor, reinforced_logits: Tensor, alpha: float) -> Tensor:
    r"""Generic logits (Who's Harry Potter, https://huggingface.co/papers/2310.02238, section 2.2):
    \\( z_{base} - \alpha \max(0, z_{reinforced} - z_{base}) \\).

    Logits are compared as they are: a constant added to all of one model's would change the result.

    Args:
        logits (`Tensor`): `[N, V]`, \\( z_{base} \\), of the model before unlearning.
        reinforced_logits (`Tensor`): `[N, V]`, of a model that was trained further on the rows to forget.
        alpha (`float`): how much tokens that it raises are lowered, 0 or more.

    Returns:
        `Tensor`: `[N, V]`, without a gradient.
    """
    base = at_least_float32(logits.detach())
    return base - alpha * (at_least_float32(reinforced_logits.detach()) - base).clamp(min=0)


def whp_rows(logits: Tensor, generic_logits: Tensor, hard: bool = False) -> Tensor:
    r"""Cross-entropy with generic predictions (see [`whp_targets`]): \\( -\sum_v q_v \log p_v \\).

    Args:
        logits (`Tensor`): `[N, V]`.
        generic_logits (`Tensor`): `[N, V]`; no gradient is taken.
        hard (`bool`): \\( q \\) is 1 at the likeliest generic token, in place of their softmax.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    generic = at_least_float32(generic_logits.detach())
    if hard:
        return F.cross_entropy(at_least_float32(logits), generic.argmax(-1), reduction="none")
    return -_expected(generic.softmax(-1), at_least_float32(logits).log_softmax(-1))


def ihl_rows(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Inverted hinge loss (LoKU, https://huggingface.co/papers/2408.06621) of each token.

    \\( 1 + p_y - \max_{v \ne y} p_v \\), between 0 and 2: the label's probability falls, and that of the likeliest
    other token rises.

    Args:
        logits (`Tensor`): `[N, V]`.
        labels (`Tensor`): `[N]`, \\( y \\).

    Returns:
        `Tensor`: `[N]`.
    """
    p = at_least_float32(logits).softmax(-1)
    labels = labels[:, None]
    return 1 + p.gather(-1, labels).squeeze(-1) - p.scatter(-1, labels, -1.0).amax(-1)


def unilogit_rows(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Unilogit (https://huggingface.co/papers/2505.06027): self-distillation from the model's own prediction in which
    the label is as likely as under the uniform distribution.

    \\( KL(p \| \tilde p) \\), \\( \tilde p = softmax(\tilde z) \\) constant, \\( \tilde z_v = z_v \\) but for
    \\( \tilde z_y = \log \sum_{v \ne y} e^{z_v} - \log(V - 1) \\), by which \\( \tilde p_y = 1 / V \\).

    Args:
        logits (`Tensor`): `[N, V]`, V of at least 2.
        labels (`Tensor`): `[N]`, \\( y \\).

    Returns:
        `Tensor`: `[N]`, nats; 0 where the label's probability is \\( 1 / V \\).
    """
    others = _without_label(logits, labels).logsumexp(-1, keepdim=True)
    level = others - math.log(logits.shape[-1] - 1)
    target = at_least_float32(logits.detach()).scatter(-1, labels[:, None], level).log_softmax(-1)
    log_p = at_least_float32(logits).log_softmax(-1)
    return _expected(log_p.exp(), log_p - target)


def unlikelihood_rows(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Unlikelihood (https://huggingface.co/papers/1908.04319, equation 3) of each token.

    \\( -\log(1 - p_y) \\), from logits alone, so that it is exact where \\( p_y \\) rounds to 1. Its gradient at the
    label's logit is \\( p_y \\), and at another's \\( -p_y p_v / (1 - p_y) \\).

    Args:
        logits (`Tensor`): `[N, V]`, V of at least 2.
        labels (`Tensor`): `[N]`, \\( y \\).

    Returns:
        `Tensor`: `[N]`, nats, 0 or more.
    """
    logits = at_least_float32(logits)
    others = logits.scatter(-1, labels[:, None], -math.inf).logsumexp(-1)
    return logits.logsumexp(-1) - others


def negative_entropy_rows(logits: Tensor) -> Tensor:
    r"""Negative entropy of each prediction, natural logarithm (the "max entropy" baseline of
    https://huggingface.co/papers/2408.00761).

    \\( \sum_v p_v \log p_v \\), between \\( -\ln V \\) and 0. Its gradient vanishes where a prediction is certain.

    Args:
        logits (`Tensor`): `[N, V]`.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    return _expected(log_p.exp(), log_p)


def pdu_rows(logits: Tensor) -> Tensor:
    r"""Squared margin of each prediction (PDU, https://huggingface.co/papers/2506.05314).

    \\( (\max_v z_v - \frac{1}{V} \sum_v z_v)^2 \\), of the logits themselves: 0 at the uniform prediction.
    Entries that are impossible, at minus infinity, do not count.

    Args:
        logits (`Tensor`): `[N, V]`.

    Returns:
        `Tensor`: `[N]`.
    """
    logits = at_least_float32(logits)
    counted = logits > -math.inf
    mean = logits.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1)
    return (logits.amax(-1) - mean).square()


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """\\( \\sum_v p_v x_v \\) of each row, `[N]`; entries that are impossible count 0, whatever their value."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)
