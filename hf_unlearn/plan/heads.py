# SPDX-License-Identifier: Apache-2.0
"""Buffers of the LM head and the loss: as wide as the vocabulary, or in tiles."""

import torch

from ..fused import Head
from ..fused.tiles import DEFAULT_TILE_BYTES, KEEP_BYTES, TILE_BYTES, Plan, plan_for
from .workload import Workload


# Bytes a token and vocabulary entry at the peak of the path over logits, measured: logits, a float32 log-softmax that
# is kept and its gradient; with KL also the reference's. The same in float32 and bfloat16, within a few percent.
LOGITS_BYTES, LOGITS_KL_BYTES = 12, 18
# Tiles alive at a time in the fused losses.
TILES, KL_TILES = 2, 4


def head_bytes(work: Workload, on_gpu: bool = True) -> float:
    """Peak of what head and loss hold beside the last hidden states."""
    needs = [need for need in work.needs.values() if need.from_head]
    if not needs:
        return 0.0
    kl = any(need.whole for need in needs)
    if not work.fused:
        return (LOGITS_KL_BYTES if kl else LOGITS_BYTES) * work.tokens * work.shape.vocab
    tile = DEFAULT_TILE_BYTES if on_gpu else TILE_BYTES["cpu"]
    tile = min(tile, 4 * work.rows * work.row_length * work.shape.vocab)
    kept = (max if work.turns else sum)(_kept(work, need) for need in needs)
    return kept + (KL_TILES if kl else TILES) * tile + head_gradient_bytes(work)


def head_gradient_bytes(work: Workload) -> float:
    """The fused losses sum the head's gradient in float32, whatever the weight's type."""
    return 4 * work.shape.vocab * work.shape.hidden if work.fused and work.shape.head_trains else 0.0


def _kept(work: Workload, need) -> float:
    """What is held until the backward for one role; see [`~hf_unlearn.fused.tiles`]."""
    shape, rows = work.shape, work.rows * work.row_length
    narrow = work.mixed or work.dtype != "float32"
    dtype = torch.bfloat16 if narrow else torch.float32
    # One number seen many times: shapes without memory.
    hidden = torch.zeros(1, dtype=dtype, requires_grad=True).expand(rows, shape.hidden)
    weight = torch.zeros(1, dtype=dtype, requires_grad=shape.head_trains).expand(shape.vocab, shape.hidden)
    # A loss over whole predictions is a mean over its rows, known ahead; log-probabilities are weighted by the method.
    factors = torch.zeros(1).expand(rows) if need.whole else None
    plan = plan_for(hidden, Head(weight), shape.vocab, factors, KEEP_BYTES)
    if plan is Plan.KEEP:
        return rows * shape.vocab * dtype.itemsize
    if plan is Plan.FOLD:
        return (rows + (shape.vocab if shape.head_trains else 0)) * shape.hidden * dtype.itemsize
    return 0.0
