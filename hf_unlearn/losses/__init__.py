# SPDX-License-Identifier: Apache-2.0
"""Objectives as pure functions of tensors.

Shapes: `B` rows, `T` positions, `V` vocabulary entries. `labels [B, T]` hold -100 where a position is not trained on
and are shifted inside: the logits at position `t` predict the label at `t + 1`. `mask [B, T]` is taken as given.
Everything from the log-softmax on is float32; float64 stays float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import FLAT_TERMS, dpo_unlearn_loss, flat_loss, jensun_rows, js_rows, one_hot_js
from .arithmetic import IGNORE_INDEX, at_least_float32, masked_mean, prediction_mask
from .soft_labels import bernoulli_distillation_rows, bernoulli_kl_rows, bernoulli_nll_rows, soft_nll_rows
from .states import distance_loss, layer_ascent_loss, noise_loss, rerouting_loss
from .tokens import (
    ceu_rows,
    ihl_rows,
    negative_entropy_rows,
    pdu_rows,
    satimp_loss,
    simnpo_loss,
    undial_rows,
    unilogit_rows,
    unlikelihood_rows,
    wga_loss,
    whp_rows,
    whp_targets,
    wtnpo_loss,
)


def per_token_logps(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label.

    Args:
        logits (`Tensor`): `[B, T, V]`.
        labels (`Tensor`): `[B, T]`, shifted inside.

    Returns:
        `tuple[Tensor, Tensor]`: log-probabilities `[B, T-1]` in nats, 0 where nothing is predicted, and the bool mask
        `[B, T-1]` of predicted positions.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORE_INDEX
    # cross_entropy keeps one vocabulary-wide buffer for its backward; gathering from log_softmax would keep two.
    nll = F.cross_entropy(
        at_least_float32(logits[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -nll.view_as(targets), mask


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's labels together: sums over tokens, `[B]`, in nats."""
    return per_token_logps(logits, labels)[0].sum(-1)


def nll_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood, mean over the predicted tokens of the batch, in nats. A scalar."""
    logps, mask = per_token_logps(logits, labels)
    return -masked_mean(logps, mask)


def npo_loss(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    r"""Negative preference optimisation (https://huggingface.co/papers/2404.05868, equation 3).

    \\( L_{NPO} = -\frac{2}{\beta} E[\log \sigma(-\beta \log \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)})] \\)

    Its gradient is gradient ascent's times \\( 2 \pi_\theta^\beta / (\pi_\theta^\beta + \pi_{ref}^\beta) \\), so it
    fades on rows that are forgotten already. Where policy and reference agree it is \\( 2 \ln 2 / \beta \\).

    Args:
        logps (`Tensor`): `[B]`, \\( \log \pi_\theta(y|x) \\), sums over tokens.
        ref_logps (`Tensor`): `[B]`, the same under the reference.
        beta (`float`): inverse temperature, above 0; gradient ascent is the limit at 0.

    Returns:
        `Tensor`: a scalar, mean over rows.
    """
    log_ratios = at_least_float32(logps) - at_least_float32(ref_logps)
    return -F.logsigmoid(-beta * log_ratios).mean() * 2 / beta


def npo_token_loss(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    r"""Negative preference optimisation token by token (https://huggingface.co/papers/2510.17021, its code for WMDP).

    \\( -E[\log \sigma(\beta \log \frac{\pi_{ref}(y_t|x, y_{<t})}{\pi_\theta(y_t|x, y_{<t})})] \\): a sigmoid a token,
    so each fades by itself, and no factor of \\( 2 / \beta \\). Where policy and reference agree it is \\( \ln 2 \\).

    Args:
        logps (`Tensor`): `[N]`, log-probabilities of the predicted tokens, nothing else among them.
        ref_logps (`Tensor`): `[N]`, the same under the reference.
        beta (`float`): inverse temperature, above 0.

    Returns:
        `Tensor`: a scalar, mean over tokens; 0 where there are none.
    """
    log_ratios = at_least_float32(logps) - at_least_float32(ref_logps)
    return -F.logsigmoid(-beta * log_ratios).sum() / max(len(logps), 1)


def tnpo_loss(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    r"""TNPO, NPO of each token (https://huggingface.co/papers/2502.19301): \\( 2 / \beta \\) times [`npo_token_loss`].

    Its gradient is gradient ascent's, each token's times \\( 2 p_t^\beta / (p_t^\beta + p_{ref,t}^\beta) \\).

    Args:
        logps, ref_logps (`Tensor`): `[N]`, of the predicted tokens under the policy and the reference.
        beta (`float`): inverse temperature, above 0; gradient ascent is the limit at 0.

    Returns:
        `Tensor`: a scalar, mean over tokens; 0 where there are none.
    """
    return npo_token_loss(logps, ref_logps, beta) * 2 / beta


def kl_to_reference(logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Tensor:
    r"""\\( KL(\pi_{ref} \| \pi_\theta) \\) over the whole vocabulary, mean over masked positions, in nats.

    Args:
        logits (`Tensor`): `[B, T, V]`, the policy's.
        ref_logits (`Tensor`): `[B, T, V]`, the reference's; no gradient is taken.
        mask (`Tensor`): `[B, T]`, positions that count, as given; see [`prediction_mask`].

    Returns:
        `Tensor`: a scalar.
    """
    mask = mask.bool()
    # Rows are chosen before the log-softmax: prompts and padding cost no vocabulary-wide buffer.
    log_p = at_least_float32(logits[mask]).log_softmax(-1)
    log_ref = at_least_float32(ref_logits[mask].detach()).log_softmax(-1)
    return F.kl_div(log_p, log_ref, log_target=True, reduction="sum") / mask.sum().clamp(min=1)


def uniform_kl(logits: Tensor, mask: Tensor, direction: str = "uniform_to_model", temperature: float = 1.0) -> Tensor:
    r"""KL divergence between the prediction and the uniform distribution, mean over masked positions, in nats.

    Args:
        logits (`Tensor`): `[B, T, V]`.
        mask (`Tensor`): `[B, T]`, positions that count, as given.
        direction (`str`): `"uniform_to_model"` for \\( KL(U \| \pi_\theta) \\), whose gradient stays alive where the
            prediction is peaked, or `"model_to_uniform"` for \\( KL(\pi_\theta \| U) = \ln V - H \\).
        temperature (`float`): divides the logits.

    Returns:
        `Tensor`: a scalar.
    """
    kl = uniform_kl_rows(logits[mask.bool()], direction, temperature)
    return kl.sum() / mask.sum().clamp(min=1)


def uniform_kl_rows(logits: Tensor, direction: str = "uniform_to_model", temperature: float = 1.0) -> Tensor:
    """[`uniform_kl`] of each row of `logits [N, V]`, `[N]`."""
    log_p = (at_least_float32(logits) / temperature).log_softmax(-1)
    log_v = math.log(logits.shape[-1])
    if direction == "uniform_to_model":
        return -log_v - log_p.mean(-1)
    if direction == "model_to_uniform":
        return log_v + (log_p.exp() * log_p).sum(-1)
    raise ValueError(f"direction={direction!r}; allowed: 'uniform_to_model', 'model_to_uniform'.")


def smoothed_nll_rows(logits: Tensor, labels: Tensor, smoothing: float = 0.0, tokens: int | None = None) -> Tensor:
    r"""Cross-entropy with label smoothing (https://huggingface.co/papers/1512.00567, section 7) of each row.

    \\( -(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_{v < K} \log p_v \\)

    Args:
        logits (`Tensor`): `[N, V]`.
        labels (`Tensor`): `[N]`.
        smoothing (`float`): \\( \epsilon \\), the share that is spread.
        tokens (`int`, *optional*): \\( K \\), the leading entries that are tokens; the others pad the matrix and get
            no share. All by default.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    if not smoothing:
        return F.cross_entropy(at_least_float32(logits), labels, reduction="none")
    log_p = at_least_float32(logits).log_softmax(-1)
    return -(1 - smoothing) * log_p.gather(-1, labels[:, None]).squeeze(-1) - smoothing * log_p[:, :tokens].mean(-1)


def distillation_rows(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""\\( T^2 KL(p^{teacher}_T \| p_T) \\) of each row (https://huggingface.co/papers/1503.02531, section 2).

    Args:
        logits (`Tensor`): `[N, V]`, the student's.
        teacher_logits (`Tensor`): `[N, V]`; no gradient is taken.
        temperature (`float`): \\( T \\); divides both.

    Returns:
        `Tensor`: `[N]`, nats.
    """
    log_p = (at_least_float32(logits) / temperature).log_softmax(-1)
    log_teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_p, log_teacher, log_target=True, reduction="none").sum(-1)


def second_moment_distance(states: Tensor, ref_states: Tensor) -> Tensor:
    r"""Distance of second moments of representations: \\( \frac{1}{d^2} \| M - M_0 \|_F^2 \\) with
    \\( M = \frac{1}{B} h^\top h \\) (MU-ALIGN's alignment term).

    With \\( E = h - h_0 \\) and \\( G = h + h_0 \\) the difference is \\( (E^\top G + G^\top E) / 2B \\); its norm
    follows from products `[B, B]`, without a matrix `[d, d]` and without a difference of large numbers.

    Args:
        states (`Tensor`): `[B, d]`, the model's.
        ref_states (`Tensor`): `[B, d]`, the frozen original's; no gradient is taken.

    Returns:
        `Tensor`: a scalar, mean over the entries of the matrix.
    """
    states, ref_states = at_least_float32(states), at_least_float32(ref_states.detach())
    count, width = states.shape
    change, both = states - ref_states, states + ref_states
    cross = change @ both.t()
    squared = ((change @ change.t()) * (both @ both.t())).sum() + (cross * cross.t()).sum()
    return squared / (2 * max(count, 1) ** 2 * width**2)


def rmu_loss(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Squared distance of activations to a target (RMU, https://huggingface.co/papers/2403.03218, section 4).

    \\( \frac{1}{|m| d} \sum_{t \in m} \| h_t - target_t \|^2 \\): the forget term with `target` = \\( c u \\), the
    retain term with the reference's activations.

    Args:
        hidden (`Tensor`): `[B, T, d]`.
        target (`Tensor`): anything that broadcasts to `[B, T, d]`; no gradient is taken.
        mask (`Tensor`): `[B, T]`, positions that count, as given.

    Returns:
        `Tensor`: a scalar, mean over masked positions and dimensions.
    """
    squared = (at_least_float32(hidden) - at_least_float32(target.detach())).square().mean(-1)
    return masked_mean(squared, mask)
