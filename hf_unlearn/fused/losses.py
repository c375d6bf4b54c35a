# SPDX-License-Identifier: Apache-2.0
"""The losses of [`hf_unlearn.losses`] from last hidden states and the LM head, with the same names and units.

Head work is done at positions that predict a label and nowhere else, and no buffer is `[B, T, V]` (see `tiles`). Two
levels: functions of `[B, T, d]` that mirror those over logits, and `row_*` functions of `[N, d]`, the positions that
[`Predicted`] picks, for methods that need several things of the same rows.
"""

import math
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .head import Head, gathered_head, is_sharded
from .predicted import Predicted
from .tiles import KEEP_BYTES, Objective, Plan, plan_for, through_head


class RowLoss(NamedTuple):
    """A loss and what it cost nothing to know besides.

    Args:
        loss (`Tensor`): a scalar or `[N]`, by the reduction asked for, in nats.
        logps (`Tensor`, *optional*): `[N]`, log-probabilities of the labels, without gradient, if labels were given.
    """

    loss: Tensor
    logps: Tensor | None


def row_logps(hidden: Tensor, labels: Tensor, head: Head, *, keep_bytes: int = KEEP_BYTES) -> Tensor:
    """Log-probability of each row's label, `[N]`, in nats.

    Args:
        hidden (`Tensor`): `[N, d]`.
        labels (`Tensor`): `[N]`, no -100 among them.
        head ([`Head`]): the policy's.
        keep_bytes (`int`): largest `[N, V]` buffer that is kept for the backward; above it logits are computed twice.
    """
    vocab = head.weight.shape[0]
    if plan_for(hidden, head, vocab, None, keep_bytes) is Plan.RECOMPUTE and _trl_fits(hidden):
        return _trl_row_logps(hidden, labels, head, keep_bytes)
    return through_head(hidden, head, _LabelLogps(labels), keep_bytes=keep_bytes)[0]


def row_kl_to_reference(
    hidden: Tensor,
    head: Head,
    ref_hidden: Tensor,
    ref_head: Head,
    labels: Tensor | None = None,
    reduction: str = "mean",
    *,
    keep_bytes: int = KEEP_BYTES,
) -> RowLoss:
    r"""\\( KL(\pi_{ref} \| \pi_\theta) \\) over the whole vocabulary at each row.

    Args:
        hidden (`Tensor`): `[N, d]`, the policy's.
        head ([`Head`]): the policy's.
        ref_hidden (`Tensor`): `[N, d']`, the reference's; no gradient is taken.
        ref_head ([`Head`]): the reference's, the policy's own `head` where that is not trained; may be a ZeRO-3 or
            FSDP2 shard.
        labels (`Tensor`, *optional*): `[N]`, for `logps` in the result.
        reduction (`str`): `mean` over rows (0 where there are none), `sum`, or `none`, which costs more to
            differentiate.
        keep_bytes (`int`): see [`row_logps`].
    """
    if is_sharded(ref_head):
        # To gather again in the backward would hang where another rank, with fewer rows, has kept its logits.
        keep_bytes = sys.maxsize
    objective = _KLToReference(ref_hidden.detach(), ref_head, labels)
    return RowLoss(*through_head(hidden, head, objective, _factors(hidden, reduction), keep_bytes))


def row_uniform_kl(
    hidden: Tensor,
    head: Head,
    direction: str = "uniform_to_model",
    temperature: float = 1.0,
    valid_vocab: int | None = None,
    labels: Tensor | None = None,
    reduction: str = "mean",
    *,
    keep_bytes: int = KEEP_BYTES,
) -> RowLoss:
    r"""KL divergence between the prediction and the uniform distribution at each row.

    Args:
        hidden (`Tensor`): `[N, d]`.
        head ([`Head`]): the policy's.
        direction (`str`): `uniform_to_model` for \\( KL(U \| \pi_\theta) \\) or `model_to_uniform` for
            \\( KL(\pi_\theta \| U) = \ln V - H \\).
        temperature (`float`): divides the logits of the loss; `logps` in the result are at temperature 1.
        valid_vocab (`int`, *optional*): number of leading entries that are tokens; the others pad the matrix, and no
            distribution includes them, that of `logps` neither.
        labels, reduction, keep_bytes: see [`row_kl_to_reference`].
    """
    if direction not in ("uniform_to_model", "model_to_uniform"):
        raise ValueError(f"direction={direction!r}; allowed: 'uniform_to_model', 'model_to_uniform'.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; give a number above 0.")
    if valid_vocab is not None and not 0 < valid_vocab <= head.weight.shape[0]:
        raise ValueError(f"valid_vocab={valid_vocab}; the head has {head.weight.shape[0]} entries.")
    objective = _UniformKL(direction, temperature, valid_vocab, labels)
    return RowLoss(*through_head(hidden, head, objective, _factors(hidden, reduction), keep_bytes))


def per_token_logps(hidden: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """[`losses.per_token_logps`] of `hidden [B, T, d]`: log-probabilities and mask, both `[B, T-1]`."""
    rows = Predicted.of(labels)
    return rows.spread(row_logps(rows.pick(hidden), rows.targets, head)), rows.mask


def sequence_logps(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """[`losses.sequence_logps`] of `hidden [B, T, d]`: sums over tokens, `[B]`."""
    return per_token_logps(hidden, labels, head)[0].sum(-1)


def nll_loss(hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
    """[`losses.nll_loss`] of `hidden [B, T, d]`: mean over predicted tokens, a scalar."""
    rows = Predicted.of(labels)
    picked = rows.pick(hidden)
    return -through_head(picked, head, _LabelLogps(rows.targets), _factors(picked, "mean"))[0]


def kl_to_reference(hidden: Tensor, ref_hidden: Tensor, mask: Tensor, head: Head, ref_head: Head) -> Tensor:
    """[`losses.kl_to_reference`] of `hidden [B, T, d]`, `ref_hidden [B, T, d']`: mean over `mask [B, T]`, a scalar."""
    mask = mask.bool()
    return row_kl_to_reference(hidden[mask], head, ref_hidden[mask], ref_head).loss


def uniform_kl(
    hidden: Tensor,
    mask: Tensor,
    head: Head,
    direction: str = "uniform_to_model",
    temperature: float = 1.0,
    valid_vocab: int | None = None,
) -> Tensor:
    """[`losses.uniform_kl`] of `hidden [B, T, d]`: mean over `mask [B, T]`, a scalar."""
    return row_uniform_kl(hidden[mask.bool()], head, direction, temperature, valid_vocab).loss


def _factors(hidden: Tensor, reduction: str) -> Tensor | None:
    if reduction == "none":
        return None
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}; allowed: 'mean', 'sum', 'none'.")
    rows = len(hidden)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return torch.full((rows,), 1 / max(rows, 1) if reduction == "mean" else 1.0, dtype=dtype, device=hidden.device)


def _label_logps(log_p: Tensor, labels: Tensor | None, rows: slice) -> Tensor | None:
    return None if labels is None else log_p.gather(-1, labels[rows, None]).squeeze(-1)


class _LabelLogps(Objective):
    def __init__(self, labels: Tensor):
        self.labels = labels

    def __call__(self, logits, rows, grad):
        log_p = logits.log_softmax(-1)
        values = _label_logps(log_p, self.labels, rows)
        by_logits = None
        if grad:
            by_logits = log_p.exp_().neg_()
            by_logits.scatter_add_(-1, self.labels[rows, None], torch.ones_like(values)[:, None])
        return values, values, by_logits


class _KLToReference(Objective):
    def __init__(self, ref_hidden: Tensor, ref_head: Head, labels: Tensor | None):
        self.ref_hidden, self.ref_head, self.labels = ref_hidden, ref_head, labels

    @contextmanager
    def opened(self):
        with gathered_head(self.ref_head) as self.whole_ref_head:
            yield
        # A gathered copy is not to live until the backward.
        del self.whole_ref_head

    def __call__(self, logits, rows, grad):
        # In this order no more than three tiles are alive.
        log_ref = self.whole_ref_head.logits(self.ref_hidden[rows]).to(logits.dtype).log_softmax(-1)
        log_p = logits.log_softmax(-1)
        p_ref = torch.exp(log_ref, out=logits)
        values = torch.linalg.vecdot(p_ref, log_ref.sub_(log_p))
        logps = _label_logps(log_p, self.labels, rows)
        return values, logps, log_p.exp_().sub_(p_ref) if grad else None


class _UniformKL(Objective):
    def __init__(self, direction: str, temperature: float, columns: int | None, labels: Tensor | None):
        self.direction, self.temperature, self.columns, self.labels = direction, temperature, columns, labels

    def __call__(self, logits, rows, grad):
        logps = _label_logps(logits, self.labels, rows)
        if logps is not None:
            logps = logps - logits.logsumexp(-1)
        log_p = logits.div_(self.temperature).log_softmax(-1)
        count = log_p.shape[-1]
        by_logits = None
        if self.direction == "uniform_to_model":
            values = -math.log(count) - log_p.mean(-1)
            if grad:
                by_logits = log_p.exp_().sub_(1 / count)
        else:
            p = torch.exp(log_p, out=logits)
            values = math.log(count) + torch.linalg.vecdot(p, log_p)
            if grad:
                by_logits = log_p.sub_((values - math.log(count))[:, None]).mul_(p)
        return values, logps, by_logits if by_logits is None else by_logits.div_(self.temperature)


def _trl_fits(hidden: Tensor) -> bool:
    """Whether TRL's kernels run as Triton programs here; its sums are float32 whatever the inputs are."""
    from transformers.utils import is_triton_available

    return hidden.device.type in ("cuda", "xpu") and is_triton_available() and hidden.dtype != torch.float64


def _trl_row_logps(hidden: Tensor, labels: Tensor, head: Head, keep_bytes: int) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    # TRL takes up to 4096 rows a tile, and lets its caller choose the columns.
    columns = keep_bytes // (max(1, min(len(hidden), 4096)) * hidden.dtype.itemsize)
    columns = max(1024, min(columns, head.weight.shape[0]))
    outputs = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, labels, 1.0, columns, head.softcap, head.scale, ()
    )
    return outputs[0]
