# SPDX-License-Identifier: Apache-2.0
"""Forget terms that prefer another answer: one to the same prompt, a fixed one, or the reference's own predictions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import at_least_float32


def dpo_unlearn_loss(
    alt_logps: Tensor, ref_alt_logps: Tensor, logps: Tensor, ref_logps: Tensor, beta: float
) -> Tensor:
    r"""Direct preference optimisation with the forget answer as the rejected one
    (https://huggingface.co/papers/2305.18290, equation 7, scaled as in https://huggingface.co/papers/2404.05868).

    \\( -\frac{2}{\beta} E[\log \sigma(\beta \log \frac{\pi_\theta(y_e|x)}{\pi_{ref}(y_e|x)}
    - \beta \log \frac{\pi_\theta(y_f|x)}{\pi_{ref}(y_f|x)})] \\)

    Where policy and reference agree it is \\( 2 \ln 2 / \beta \\). Without its first ratio it is [`npo_loss`].

    Args:
        alt_logps, ref_alt_logps (`Tensor`): `[B]`, of the preferred answers \\( y_e \\), sums over tokens.
        logps, ref_logps (`Tensor`): `[B]`, of the forget answers \\( y_f \\) to the same prompts.
        beta (`float`): inverse temperature, above 0.

    Returns:
        `Tensor`: a scalar, mean over rows.
    """
    gains = at_least_float32(alt_logps) - at_least_float32(ref_alt_logps)
    log_ratios = at_least_float32(logps) - at_least_float32(ref_logps)
    return -F.logsigmoid(beta * (gains - log_ratios)).mean() * 2 / beta


def _neyman_conjugate(p: Tensor) -> Tensor:
    # The slope of the root is infinite at 1, where an answer is certain; that of the whole at its logit is 0 there.
    return 2 - 2 * (1 - p).clamp(min=torch.finfo(p.dtype).eps).sqrt()


# Divergence -> \( -g^*(P_e) \), of the alternate answer, and \( f^*(g^*(P_f)) \), of the forget answer.
FLAT_TERMS = {
    "total_variation": (lambda p: -p.tanh() / 2, lambda p: p.tanh() / 2),
    "kl": (lambda p: -p, lambda p: (p - 1).exp()),
    "jensen_shannon": (lambda p: F.softplus(-p) - math.log(2), lambda p: p + F.softplus(-p) - math.log(2)),
    "pearson": (lambda p: -p, lambda p: p.square() / 4 + p),
    "reverse_kl": (lambda p: p.exp(), lambda p: -1 - p),
    "squared_hellinger": (lambda p: p.exp() - 1, lambda p: (-p).exp() - 1),
    "jeffrey": (lambda p: -p, lambda p: p + p.square() / 4 + p**3 / 16),
    "neyman": (lambda p: p.exp() - 1, _neyman_conjugate),
}


def flat_loss(p_alt: Tensor, p_forget: Tensor, divergence: str = "total_variation") -> Tensor:
    r"""Loss adjustment with forget data alone (FLAT, https://huggingface.co/papers/2410.11143).

    \\( E[-g^*(P_e) + f^*(g^*(P_f))] \\), the variational form of an f-divergence between another answer and the forget
    answer; `FLAT_TERMS` has both functions of each divergence, as published. Minimised, `reverse_kl`,
    `squared_hellinger` and `neyman` make the other answer less probable, the first two the forget answer more so.

    Args:
        p_alt, p_forget (`Tensor`): `[B]`, mean probability of a token of the other answer and of the forget answer.
        divergence (`str`): a key of `FLAT_TERMS`.

    Returns:
        `Tensor`: a scalar, mean over rows.
    """
    if divergence not in FLAT_TERMS:
        raise ValueError(f"divergence={divergence!r}; allowed: {', '.join(map(repr, FLAT_TERMS))}.")
    prefer, forget = FLAT_TERMS[divergence]
    return (prefer(at_least_float32(p_alt)) + forget(at_least_float32(p_forget))).mean()


def one_hot_js(logps: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence between a prediction and a one-hot distribution, from its entry's log-probability.

    \\( \ln 2 + \frac{1}{2} (p \ln p - (1 + p) \ln(1 + p)) \\), exact, since the other entries add up: 0
    at \\( p = 1 \\), \\( \ln 2 \\) at \\( p = 0 \\).

    Args:
        logps (`Tensor`): `[N]`.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    logps = at_least_float32(logps)
    p = logps.exp()
    return math.log(2) + (p * logps - (1 + p) * p.log1p()) / 2


def jensun_rows(logits: Tensor, target: Tensor) -> Tensor:
    r"""JensUn's forget term (https://huggingface.co/papers/2509.02820) of each row: the Jensen-Shannon divergence
    between the prediction and a target token; see [`one_hot_js`].

    Args:
        logits (`Tensor`): `[N, V]`.
        target (`Tensor`): `[N]`, token ids.

    Returns:
        `Tensor`: `[N]`, nats, at most \\( \ln 2 \\).
    """
    return one_hot_js(-F.cross_entropy(at_least_float32(logits), target, reduction="none"))


def js_rows(logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence between two predictions of each row, natural logarithm.

    Args:
        logits (`Tensor`): `[N, V]`.
        ref_logits (`Tensor`): `[N, V]`; no gradient is taken.

    Returns:
        `Tensor`: `[N]`, nats, at most \\( \ln 2 \\).
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    log_q = at_least_float32(ref_logits.detach()).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2
