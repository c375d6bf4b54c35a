# SPDX-License-Identifier: Apache-2.0
"""What the fused losses cost: products counted, buffers seen."""

import pytest
import torch
from test_fused import TINY, VOCAB, Case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hf_unlearn import fused
from hf_unlearn.fused import Head
from hf_unlearn.fused.tiles import Plan, plan_for


def units(run, rows, width, vocab):
    # The counter knows `mm` and `addmm`, and would leave the accumulation in place out.
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, *args, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops:
        run()
    return flops.get_total_flops() / (2 * rows * width * vocab)


def test_arithmetic():
    """The table of `tiles`: in products of the head, forward and backward together."""
    size = {"rows": 96, "width": 16, "vocab": 300}
    case = Case(bias=False, dtype=torch.float32, **size)
    frozen = Case(bias=False, dtype=torch.float32, **size)
    frozen.weight.requires_grad_(False)
    wide = size["rows"] * size["vocab"] * 4

    def logps(c, **budget):
        fused.row_logps(c.hidden, c.labels, c.head, **budget).sum().backward()

    def kl(c, reduction="mean", width=16, **budget):
        ref = c.ref_hidden[:, :width], Head(c.ref_weight[:, :width])
        fused.row_kl_to_reference(c.hidden, c.head, *ref, None, reduction, **budget).loss.sum().backward()

    def count(run):
        return units(run, **size)

    assert count(lambda: logps(case)) == 3
    assert count(lambda: logps(case, keep_bytes=wide)) == 3
    assert count(lambda: logps(case, keep_bytes=wide - 1)) == 4
    assert count(lambda: logps(frozen, keep_bytes=TINY)) == 2
    assert count(lambda: kl(case)) == 4
    assert count(lambda: kl(case, keep_bytes=TINY)) == 4
    assert count(lambda: kl(frozen, keep_bytes=TINY)) == 3
    assert count(lambda: kl(case, "none")) == 4
    assert count(lambda: kl(case, "none", keep_bytes=TINY)) == 6
    with torch.no_grad():
        assert count(lambda: fused.row_logps(case.hidden, case.labels, case.head)) == 1


class Largest(TorchDispatchMode):
    """The most elements that any tensor made under it has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("objective", ["logps", "kl", "kl rows", "uniform"])
def test_no_buffer_is_larger_than_a_tile(objective):
    rows, width, vocab, tile_rows = 64, 4, 500, 8
    case = Case(bias=True, softcap=3.0, dtype=torch.float32, rows=rows, width=width, vocab=vocab)
    budget = {"keep_bytes": tile_rows * vocab * 4}
    with Largest() as largest:
        if objective == "logps":
            out = fused.row_logps(case.hidden, case.labels, case.head, **budget)
        elif objective == "uniform":
            out = fused.row_uniform_kl(case.hidden, case.head, **budget).loss
        else:
            reduction = "mean" if objective == "kl" else "none"
            out = fused.row_kl_to_reference(
                case.hidden, case.head, case.ref_hidden, case.ref_head, case.labels, reduction, **budget
            ).loss
        out.sum().backward()
    assert largest.elements == tile_rows * vocab
    assert largest.elements < rows * vocab / 4


def test_plans():
    case = Case(bias=False, rows=8, width=8)
    size = 8 * 8 * VOCAB
    factors = torch.ones(8)
    assert plan_for(case.hidden, case.head, VOCAB, None, size) is Plan.KEEP
    assert plan_for(case.hidden, case.head, VOCAB, None, size - 1) is Plan.RECOMPUTE
    assert plan_for(case.hidden, case.head, VOCAB, factors, TINY) is Plan.KEEP  # [N, V] is no more than [V, d]
    assert plan_for(case.hidden[:, :7], Head(case.weight[:, :7]), VOCAB, factors, 2**30) is Plan.FOLD
    case.weight.requires_grad_(False)
    assert plan_for(case.hidden, case.head, VOCAB, None, size) is Plan.FOLD
    with torch.no_grad():
        assert plan_for(case.hidden, case.head, VOCAB, None, size) is Plan.VALUES
