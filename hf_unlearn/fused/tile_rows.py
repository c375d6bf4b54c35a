# SPDX-License-Identifier: Apache-2.0
"""Any function of a row's logits, with the head's product taken in tiles: what no closed form is written for."""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import losses
from .head import Head, gathered_head, is_sharded
from .tiles import KEEP_BYTES, Objective, through_head


class TileRows(NamedTuple):
    """What is known of the `n` rows of a tile beside their logits, and what their labels mean: one of K each.

    Args:
        labels (`Tensor`): `[n]`.
        ref_logits (`Tensor`, *optional*): `[n, K]`, the reference's; no gradient is taken.
        weights (`Tensor`, *optional*): `[n]`, given by the caller.
        others (`Mapping[str, Tensor]`): `[n, K]`, those of other frozen models by their names; no gradient is taken.
    """

    labels: Tensor
    ref_logits: Tensor | None = None
    weights: Tensor | None = None
    others: Mapping[str, Tensor] = MappingProxyType({})

    def against(self, name: str) -> "TileRows":
        """The same rows with another frozen model in the reference's place."""
        return self._replace(ref_logits=self.others[name])

    def nll(self, logits: Tensor, smoothing: float = 0.0, tokens: int | None = None) -> Tensor:
        """Negative log-likelihood of the labels, `[n]`; see [`~hf_unlearn.losses.smoothed_nll_rows`]."""
        return losses.smoothed_nll_rows(logits, self.labels, smoothing, tokens)

    def distillation(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Divergence from the reference, `[n]`; see [`~hf_unlearn.losses.distillation_rows`]."""
        return losses.distillation_rows(logits, self.ref_logits, temperature)


class RowValues(NamedTuple):
    """A function's result.

    Args:
        value (`Tensor`): `[N]`, or a scalar with `factors`.
        stats (`dict[str, Tensor]`): name to `[N]`, without gradient.
    """

    value: Tensor
    stats: dict[str, Tensor]


# From logits `[n, K]`, at least float32, and what belongs to them: one value a row `[n]`, differentiable, and
# statistics, name to `[n]`. No row's value may depend on another row.
RowFn = Callable[[Tensor, TileRows], tuple[Tensor, dict[str, Tensor]]]


def row_values(
    hidden: Tensor,
    head: Head,
    function: RowFn,
    labels: Tensor,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    weights: Tensor | None = None,
    columns: int | None = None,
    factors: Tensor | None = None,
    others: Mapping[str, tuple[Tensor, Head]] = MappingProxyType({}),
    *,
    keep_bytes: int = KEEP_BYTES,
) -> RowValues:
    """Applies `function` to the logits of each row; its gradient is taken by autograd inside a tile.

    Args:
        hidden (`Tensor`): `[N, d]`.
        head ([`Head`]): the policy's.
        function (`RowFn`): see there.
        labels (`Tensor`): `[N]`.
        ref_hidden (`Tensor`, *optional*): `[N, d']`, the reference's, where `function` compares with its logits.
        ref_head ([`Head`], *optional*): the reference's, needed with `ref_hidden`; may be a ZeRO-3 or FSDP2 shard.
        weights (`Tensor`, *optional*): `[N]`, handed to `function`.
        columns (`int`, *optional*): number of leading entries of the vocabulary that `function` sees; the others pad
            the matrix.
        factors (`Tensor`, *optional*): `[N]`, constants to sum the values with, which is cheaper to differentiate.
        others (`Mapping[str, tuple[Tensor, Head]]`): states and head of other frozen models, by the names that
            `function` reads their logits by.
        keep_bytes (`int`): see [`~hf_unlearn.fused.losses.row_logps`].
    """
    compared = dict(others) if ref_hidden is None else {None: (ref_hidden, ref_head), **others}
    if any(is_sharded(theirs) for _, theirs in compared.values()):
        # To gather again in the backward would hang where another rank, with fewer rows, has kept its logits.
        keep_bytes = sys.maxsize
    objective = _ByAutograd(function, labels, compared, weights, columns)
    value, stats = through_head(hidden, head, objective, factors, keep_bytes)
    return RowValues(value, dict(zip(objective.names, stats.unbind(-1), strict=True)))


class _ByAutograd(Objective):
    # Logits, their gradient and what autograd holds between them: more than closed forms need.
    tile_share = 0.5

    def __init__(self, function, labels, compared, weights, columns):
        self.function, self.labels, self.weights, self.columns = function, labels, weights, columns
        # Name to states and head; the reference has no name.
        self.compared = {name: (hidden.detach(), head) for name, (hidden, head) in compared.items()}
        self.names: tuple[str, ...] = ()

    @contextmanager
    def opened(self):
        with ExitStack() as stack:
            self.heads = {name: stack.enter_context(gathered_head(head)) for name, (_, head) in self.compared.items()}
            yield
            # A gathered copy is not to live until the backward.
            del self.heads

    def __call__(self, logits, rows, grad):
        seen = {
            name: self.heads[name].logits(hidden[rows]).to(logits.dtype)[:, : self.columns]
            for name, (hidden, _) in self.compared.items()
        }
        weights = None if self.weights is None else self.weights[rows]
        at = TileRows(self.labels[rows], seen.pop(None, None), weights, seen)
        with torch.set_grad_enabled(grad):
            values, stats = self.function(logits.requires_grad_(grad), at)
        self.names = tuple(stats)
        by_logits = None
        if grad:
            (by_logits,) = torch.autograd.grad(values, logits, torch.ones_like(values), materialize_grads=True)
        return values.detach(), torch.stack([value.detach() for value in stats.values()], -1), by_logits
