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


IGNORE_INDEX = -100


def at_least_float32(x: Tensor) -> Tensor:
    """float64 as it is, anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()


def prediction_mask(labels: Tensor) -> Tensor:
    """Positions whose logits predict a label.

    Args:
        labels (`Tensor`): `[B, T]`.

    Returns:
        `Tensor`: bool `[B, T]`; the last position predicts nothing.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is set; 0, with a gradient of 0, where it is set nowhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)


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


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """\\( \\sum_v p_v x_v \\) of each row, `[N]`; entries that are impossible count 0, whatever their value."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)


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
