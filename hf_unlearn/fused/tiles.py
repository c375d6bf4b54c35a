# SPDX-License-Identifier: Apache-2.0
r"""Functions of the logits, one value a row, with the head's product taken in tiles of rows.

The gradient of a row's value by its logits is known, up to a factor, while the logits are at hand; so it is formed
then. What is done with it is a [`Plan`]. Cost in units of one product `[N, d] x [d, V]`, of which a linear layer with
cross-entropy has 3, or 2 where the head is not trained. KL adds 1, the reference's, and 2 where it recomputes.

| plan        | when                                              | units | held until the backward |
|-------------|---------------------------------------------------|-------|-------------------------|
| `VALUES`    | no gradient                                       | 1     | nothing                 |
| `FOLD`      | head not trained, any factor a row                | 2     | `[N, d]`                |
| `FOLD`      | factors known before (means), more rows than `d`  | 3     | `[N, d]` and `[V, d]`   |
| `KEEP`      | factors known before, or `[N, V]` within budget   | 3     | `[N, V]`, model's dtype |
| `RECOMPUTE` | otherwise                                         | 4     | nothing                 |
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import Head


KEEP_BYTES = 256 * 2**20
# float32 logits of one tile; up to three of its size are alive. On a CPU 256 rows are as fast as more, elsewhere every
# tile costs a pass over the weight's gradient.
TILE_BYTES = {"cpu": 16 * 2**20}
DEFAULT_TILE_BYTES = 256 * 2**20
SCALED_ROWS = 4096


class Plan(Enum):
    VALUES, FOLD, KEEP, RECOMPUTE = range(4)


class Objective:
    """One value a row. `columns` limits the vocabulary to its first entries; `tile_share` makes tiles smaller where
    more of them are alive."""

    columns: int | None = None
    tile_share: float = 1.0

    def opened(self) -> AbstractContextManager:
        """Entered around every loop over tiles."""
        return nullcontext()

    def __call__(self, logits: Tensor, rows: slice, grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Values `[n]`, log-probabilities of labels `[n]` or None, and with `grad` the gradient `[n, V]` of each value
        by its logits, for `logits [n, V]`, which may be overwritten, of `rows`."""
        raise NotImplementedError


@dataclass
class _Job:
    head: Head
    objective: Objective
    factors: Tensor | None
    dtype: torch.dtype
    tile_rows: int

    @property
    def columns(self) -> int:
        return self.head.weight.shape[0] if self.objective.columns is None else self.objective.columns

    def operands(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tensors as they are multiplied: in `dtype`, and no more of the vocabulary than counts."""
        bias = None if bias is None else bias[: self.columns]
        return hidden.to(self.dtype), weight[: self.columns].to(self.dtype), bias

    def row_factors(self, hidden: Tensor) -> Tensor:
        """`[N]`, what the gradient tiles of [`_sweep`] are short of: the head's scale, and the caller's factors."""
        scale = torch.full((len(hidden),), self.head.scale, dtype=_wide(self.dtype), device=hidden.device)
        return scale if self.factors is None else scale * self.factors


def plan_for(hidden: Tensor, head: Head, vocab: int, factors: Tensor | None, keep_bytes: int) -> Plan:
    """The cheapest way that stays within `keep_bytes` of logits held until the backward; see the module's table."""
    trains_head = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if not torch.is_grad_enabled() or not (trains_head or hidden.requires_grad):
        return Plan.VALUES
    if not trains_head:
        return Plan.FOLD
    rows, width = hidden.shape
    if factors is not None:
        return Plan.FOLD if width < rows else Plan.KEEP
    return Plan.KEEP if rows * vocab * compute_dtype(hidden).itemsize <= keep_bytes else Plan.RECOMPUTE


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype to multiply in: a linear layer's, but never float16, where a factor of 1/N makes gradients vanish that
    a loss scaler, which comes later, would have saved."""
    device = hidden.device.type
    dtype = hidden.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return torch.float32 if dtype == torch.float16 else dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def through_head(
    hidden: Tensor, head: Head, objective: Objective, factors: Tensor | None = None, keep_bytes: int = KEEP_BYTES
) -> tuple[Tensor, Tensor | None]:
    """Applies `objective` to the logits of `hidden`.

    Args:
        hidden (`Tensor`): `[N, d]`.
        head ([`Head`]): the policy's.
        objective ([`Objective`]): what to compute.
        factors (`Tensor`, *optional*): `[N]`, constants; the result is the sum of the values times these, which is
            cheaper to differentiate than values alone.
        keep_bytes (`int`): see [`plan_for`]; no tile is larger either, down to one row.

    Returns:
        `tuple[Tensor, Tensor | None]`: values `[N]`, or a scalar with `factors`; and the labels' log-probabilities
        `[N]`, without gradient, if the objective has labels.
    """
    dtype = compute_dtype(hidden)
    job = _Job(head, objective, factors, dtype, tile_rows=0)
    tile_bytes = min(TILE_BYTES.get(hidden.device.type, DEFAULT_TILE_BYTES), keep_bytes)
    job.tile_rows = max(1, int(objective.tile_share * tile_bytes) // (job.columns * _wide(dtype).itemsize))
    plan = plan_for(hidden, head, job.columns, factors, keep_bytes)
    if plan is Plan.VALUES:
        with torch.no_grad():
            values, logps = _sweep(job, job.operands(hidden, head.weight, head.bias))
            return _reduced(values, factors), logps
    return _ThroughHead.apply(hidden, head.weight, head.bias, job, plan)


def _reduced(values: Tensor, factors: Tensor | None) -> Tensor:
    return values if factors is None else (values * factors).sum()


def _sweep(
    job: _Job, operands: tuple[Tensor, Tensor, Tensor | None], use: Callable[[slice, Tensor], None] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Values and log-probabilities of all rows. `use(rows, gradient)` gets the gradient of a tile's values by the
    product, short of [`_Job.row_factors`]."""
    hidden, weight, bias = operands
    head = replace(job.head, weight=weight, bias=bias)
    values, logps = [], []
    with torch.autocast(hidden.device.type, enabled=False), job.objective.opened():
        # At least once: without rows, too, the result has the right type and a graph.
        for start in range(0, max(len(hidden), 1), job.tile_rows):
            rows = slice(start, min(start + job.tile_rows, len(hidden)))
            logits = head.logits(hidden[rows])
            slope = None
            if use is not None and head.softcap is not None:
                slope = 1 - (logits / head.softcap) ** 2
            tile_values, tile_logps, grad = job.objective(logits, rows, use is not None)
            values.append(tile_values)
            logps.append(tile_logps)
            if use is not None:
                use(rows, (grad if slope is None else grad.mul_(slope)).to(job.dtype))
    return torch.cat(values), None if logps[0] is None else torch.cat(logps)


class _Gradients:
    """Sums of the gradients by hidden states, weight and bias, tile by tile; row `i` counts `factors[i]` times."""

    def __init__(self, job: _Job, operands, whole: tuple[Tensor, Tensor, Tensor | None], needs, factors: Tensor):
        self.columns, self.factors = job.columns, factors
        self.hidden, self.weight, _ = operands
        # Partial products rounded to bfloat16 before they are added would bias the sum.
        self.by_hidden, self.by_weight, self.by_bias = (
            torch.zeros(x.shape, dtype=_wide(job.dtype), device=x.device) if need else None
            for x, need in zip(whole, needs, strict=True)
        )

    def add(self, rows: slice, grad: Tensor) -> None:
        factors = self.factors[rows]
        if self.by_hidden is not None:
            self.by_hidden[rows] = (grad @ self.weight) * factors[:, None]
        if self.by_weight is not None:
            # Factors go onto the hidden states: those are narrower than the vocabulary.
            hidden = (self.hidden[rows] * factors[:, None]).to(grad.dtype)
            _add_product(self.by_weight[: self.columns], grad.t(), hidden)
        if self.by_bias is not None:
            self.by_bias[: self.columns] += grad.t().to(factors.dtype) @ factors

    def of(self, whole: tuple[Tensor, Tensor, Tensor | None]) -> list[Tensor | None]:
        sums = (self.by_hidden, self.by_weight, self.by_bias)
        return [None if x is None else x.to(like.dtype) for x, like in zip(sums, whole, strict=True)]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.is_cuda and a.dtype == torch.bfloat16:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


class _ThroughHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, job: _Job, plan: Plan):
        ctx.set_materialize_grads(False)
        ctx.job, ctx.plan = job, plan
        whole = hidden, weight, bias
        operands = job.operands(*whole)
        if plan is Plan.RECOMPUTE:
            values, logps = _sweep(job, operands)
            ctx.save_for_backward(*whole)
        elif plan is Plan.KEEP:
            kept = torch.empty((len(hidden), job.columns), dtype=job.dtype, device=hidden.device)
            values, logps = _sweep(job, operands, lambda rows, grad: kept[rows].copy_(grad))
            ctx.save_for_backward(*whole, kept)
        else:
            sums = _Gradients(job, operands, whole, ctx.needs_input_grad[:3], job.row_factors(hidden))
            values, logps = _sweep(job, operands, sums.add)
            ctx.save_for_backward(*sums.of(whole))
        if logps is not None:
            ctx.mark_non_differentiable(logps)
        return _reduced(values, job.factors), logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 5
        job, needs = ctx.job, ctx.needs_input_grad[:3]
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.plan is Plan.FOLD:
                return *(_scaled(x, grad) for x in ctx.saved_tensors), None, None
            *whole, kept = ctx.saved_tensors if ctx.plan is Plan.KEEP else (*ctx.saved_tensors, None)
            operands, factors = job.operands(*whole), job.row_factors(whole[0]) * grad
            if kept is not None:
                return *_kept_gradients(operands, whole, needs, factors, kept), None, None
            sums = _Gradients(job, operands, whole, needs, factors)
            _sweep(job, operands, sums.add)
            return *sums.of(whole), None, None


def _scaled(sums: Tensor | None, grad: Tensor) -> Tensor | None:
    """`sums` times `grad`, a scalar or one factor a row, multiplied in the wider of their types."""
    if sums is None:
        return None
    factors = grad if grad.dim() == 0 else grad.view(-1, *(1,) * (sums.dim() - 1))
    if sums.dtype == grad.dtype:
        return sums * factors
    # A scalar would be rounded to the type of `sums`; a copy of all of it in the wider type would be large.
    out = torch.empty_like(sums)
    for start in range(0, len(sums), SCALED_ROWS):
        rows = slice(start, start + SCALED_ROWS)
        out[rows] = sums[rows].to(grad.dtype) * (factors if grad.dim() == 0 else factors[rows])
    return out


def _kept_gradients(operands, whole, needs, factors: Tensor, kept: Tensor) -> list[Tensor | None]:
    hidden, weight, _ = operands
    by_hidden = (kept @ weight) * factors[:, None] if needs[0] else None
    by_weight = kept.t() @ (hidden * factors[:, None]).to(kept.dtype) if needs[1] else None
    by_bias = kept.t().to(factors.dtype) @ factors if needs[2] else None
    grads = (by_hidden, by_weight, by_bias)
    return [None if x is None else _padded(x, like).to(like.dtype) for x, like in zip(grads, whole, strict=True)]


def _padded(part: Tensor, whole: Tensor) -> Tensor:
    if len(part) == len(whole):
        return part
    return torch.cat([part, part.new_zeros((len(whole) - len(part), *part.shape[1:]))])
