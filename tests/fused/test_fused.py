# SPDX-License-Identifier: Apache-2.0
"""Fused losses against slow float64 formulas."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_unlearn import fused, losses
from hf_unlearn.fused import Head
from hf_unlearn.fused import losses as fused_losses
from hf_unlearn.fused.predicted import Predicted


ROWS, WIDTH, VOCAB = 9, 5, 13
TINY = 1  # bytes: one row a tile, nothing kept


# Slow formulas


def slow_logits(hidden, weight, bias, scale, softcap):
    z = hidden.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def slow_logps(z, labels):
    return torch.stack([z[i, y] - torch.log(torch.exp(z[i]).sum()) for i, y in enumerate(labels.tolist())])


def slow_kl(z, ref_z):
    p, ref = z.softmax(-1), ref_z.softmax(-1)
    return (ref * (ref / p).log()).sum(-1)


def slow_uniform_kl(z, direction, temperature, valid):
    z = z[:, :valid] / temperature
    p, u = z.softmax(-1), torch.full_like(z, 1 / z.shape[-1])
    return ((u * (u / p).log()) if direction == "uniform_to_model" else (p * (p / u).log())).sum(-1)


class Case:
    """A random head, its hidden states and labels."""

    def __init__(self, bias=True, scale=1.0, softcap=None, dtype=torch.float64, rows=ROWS, width=WIDTH, vocab=VOCAB):
        g = torch.Generator().manual_seed(rows + vocab)

        def normal(*shape):
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

        self.hidden = normal(rows, width).requires_grad_()
        self.weight = normal(vocab, width).requires_grad_()
        self.bias = normal(vocab).requires_grad_() if bias else None
        self.ref_hidden, self.ref_weight = normal(rows, width + 1), normal(vocab, width + 1)
        self.labels = torch.randint(0, vocab, (rows,), generator=g)
        self.row_grads = torch.randn(rows, generator=g, dtype=torch.float64)
        self.scale, self.softcap = scale, softcap

    @property
    def head(self):
        return Head(self.weight, self.bias, self.scale, self.softcap)

    @property
    def ref_head(self):
        return Head(self.ref_weight, None, self.scale, self.softcap)

    @property
    def inputs(self):
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None and x.requires_grad]

    def slow(self):
        return slow_logits(self.hidden, self.weight, self.bias, self.scale, self.softcap)

    def slow_ref(self):
        return slow_logits(self.ref_hidden, self.ref_weight, None, self.scale, self.softcap)

    def grads(self, out):
        """Gradients of `out`, a scalar, or rows that are weighed one by one."""
        total = out if out.dim() == 0 else (out.double() * self.row_grads).sum()
        return torch.autograd.grad(total, self.inputs)

    def same(self, out, slow, **tolerance):
        torch.testing.assert_close(out.double(), slow, **tolerance)
        for ours, theirs in zip(self.grads(out), self.grads(slow), strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), **tolerance)


HEADS = [
    {"bias": False},
    {"bias": True},
    {"bias": False, "scale": 0.25},
    {"bias": True, "scale": 3.0, "softcap": 2.0},
    {"bias": False, "softcap": 5.0},
]
heads = pytest.mark.parametrize("options", HEADS, ids=str)
budgets = pytest.mark.parametrize("keep_bytes", [TINY, 4 * 8 * VOCAB, 2**28], ids=["row", "rows", "all"])


@heads
@budgets
def test_row_logps(options, keep_bytes):
    case = Case(**options)
    case.same(fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=keep_bytes),
              slow_logps(case.slow(), case.labels))  # fmt: skip


@heads
@budgets
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_row_kl_to_reference(options, keep_bytes, reduction):
    case = Case(**options)
    out = fused.row_kl_to_reference(
        case.hidden, case.head, case.ref_hidden, case.ref_head, case.labels, reduction, keep_bytes=keep_bytes
    )
    slow = slow_kl(case.slow(), case.slow_ref())
    case.same(out.loss, slow if reduction == "none" else getattr(slow, reduction)())
    torch.testing.assert_close(out.logps, slow_logps(case.slow(), case.labels).detach())
    assert not out.logps.requires_grad


@heads
@budgets
@pytest.mark.parametrize("direction", ["uniform_to_model", "model_to_uniform"])
@pytest.mark.parametrize(("temperature", "valid"), [(1.0, None), (2.5, 10)])
def test_row_uniform_kl(options, keep_bytes, direction, temperature, valid):
    for reduction in ("mean", "none"):
        case = Case(**options)
        out = fused.row_uniform_kl(
            case.hidden, case.head, direction, temperature, valid, reduction=reduction, keep_bytes=keep_bytes
        )
        assert out.logps is None
        slow = slow_uniform_kl(case.slow(), direction, temperature, valid)
        case.same(out.loss, slow if reduction == "none" else slow.mean())


@heads
def test_mean_of_fewer_rows_than_dimensions(options):
    """Kept, since `[N, V]` is smaller than the weight's gradient."""
    case = Case(rows=4, width=6, **options)
    out = fused.row_kl_to_reference(case.hidden, case.head, case.ref_hidden, case.ref_head, keep_bytes=TINY).loss
    case.same(out, slow_kl(case.slow(), case.slow_ref()).mean())
    out = fused.row_uniform_kl(case.hidden, case.head, valid_vocab=10, keep_bytes=TINY).loss
    case.same(out, slow_uniform_kl(case.slow(), "uniform_to_model", 1.0, 10).mean())


def test_uniform_kl_reports_logps_at_temperature_one():
    case = Case()
    labels = case.labels.clamp(max=9)
    out = fused.row_uniform_kl(case.hidden, case.head, temperature=2.0, valid_vocab=10, labels=labels)
    torch.testing.assert_close(out.logps, slow_logps(case.slow()[:, :10], labels).detach())


def test_kl_of_equal_models_is_zero():
    case = Case(dtype=torch.float32, softcap=5.0)
    out = fused.row_kl_to_reference(case.hidden, case.head, case.hidden, case.head, reduction="none")
    assert out.loss.abs().max() < 1e-6
    assert max(g.abs().max() for g in case.grads(out.loss)) < 1e-5


@pytest.mark.parametrize("trained", list(itertools.product([True, False], repeat=3))[:-1], ids=str)
@pytest.mark.parametrize("keep_bytes", [TINY, 2**28])
def test_only_what_trains_gets_a_gradient(trained, keep_bytes):
    for reduction in ("mean", "none"):
        case = Case(scale=0.5, softcap=4.0)
        for x, trains in zip((case.hidden, case.weight, case.bias), trained, strict=True):
            x.requires_grad_(trains)
        out = fused.row_kl_to_reference(
            case.hidden, case.head, case.ref_hidden, case.ref_head, None, reduction, keep_bytes=keep_bytes
        ).loss
        slow = slow_kl(case.slow(), case.slow_ref())
        case.same(out, slow if reduction == "none" else slow.mean())


def test_reference_gets_no_gradient():
    case = Case()
    case.ref_hidden.requires_grad_()
    case.ref_weight.requires_grad_()
    fused.row_kl_to_reference(case.hidden, case.head, case.ref_hidden, case.ref_head).loss.backward()
    assert case.ref_hidden.grad is None
    assert case.ref_weight.grad is None
    assert case.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("keep_bytes", [TINY, 2**28])
def test_backward_twice_is_the_same(keep_bytes):
    case = Case()
    for out in (
        fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=keep_bytes).sum(),
        fused.row_kl_to_reference(case.hidden, case.head, case.ref_hidden, case.ref_head, keep_bytes=keep_bytes).loss,
    ):
        first = torch.autograd.grad(out * 3, case.inputs, retain_graph=True)
        again = torch.autograd.grad(out * 3, case.inputs)
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


# Types


@pytest.mark.parametrize("keep_bytes", [TINY, 2**28])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 3e-2, 6e-2), (torch.float16, 5e-3, 5e-3)]
)
def test_narrow_inputs(keep_bytes, dtype, rtol, atol):
    """Against float64 of the same, rounded, inputs."""
    case = Case(dtype=dtype, scale=0.5, softcap=6.0, rows=40, width=16, vocab=50)
    logps = fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=keep_bytes)
    assert logps.dtype == torch.float32
    assert all(g.dtype == dtype for g in case.grads(logps))
    logps = fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=keep_bytes)
    case.same(logps, slow_logps(case.slow(), case.labels), rtol=rtol, atol=atol)
    kl = fused.row_kl_to_reference(case.hidden, case.head, case.ref_hidden, case.ref_head, keep_bytes=keep_bytes).loss
    case.same(kl, slow_kl(case.slow(), case.slow_ref()).mean(), rtol=rtol, atol=atol)


def test_a_scalar_factor_is_not_rounded_to_bfloat16():
    case = Case(dtype=torch.bfloat16, rows=64, width=8)
    kl = lambda: fused.row_kl_to_reference(case.hidden, case.head, case.ref_hidden, case.ref_head).loss  # noqa: E731
    (plain,) = torch.autograd.grad(kl(), [case.weight])
    (scaled,) = torch.autograd.grad(kl() * 1.0039, [case.weight])  # bfloat16 would make it 1.0
    assert (scaled != plain).float().mean() > 0.2


@pytest.mark.parametrize("keep_bytes", [TINY, 2**28])
def test_autocast_is_the_plain_path_under_autocast(keep_bytes):
    case = Case(bias=True, dtype=torch.float32, rows=40, width=16, vocab=50)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=keep_bytes)
        logits = torch.nn.functional.linear(case.hidden, case.weight, case.bias)
        plain = logits.float().log_softmax(-1).gather(-1, case.labels[:, None]).squeeze(-1)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain, rtol=3e-2, atol=6e-2)
    for ours, theirs in zip(case.grads(out), case.grads(plain), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=6e-2)
    exact = slow_logps(case.slow(), case.labels)
    assert (out - exact).abs().max() > 1e-4, "the product was not taken in bfloat16"


# [B, T, d] functions, masks


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 7, WIDTH, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, VOCAB, (3, 7), generator=g)
    labels[0, :4] = labels[1, :1] = labels[1, 5:] = labels[2] = -100
    return hidden, weight, labels


def both(batch, ours, theirs):
    hidden, weight, labels = batch
    a, b = ours(hidden, Head(weight), labels), theirs(hidden @ weight.T, labels)
    torch.testing.assert_close(a, b)
    factors = torch.arange(1.0, a.numel() + 1, dtype=torch.float64).view(a.shape)
    grads = [torch.autograd.grad((x * factors).sum(), (hidden, weight)) for x in (a, b)]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)
    return grads[0]


def test_same_as_the_losses_over_logits(batch):
    both(batch, lambda h, head, y: fused.per_token_logps(h, y, head)[0], lambda z, y: losses.per_token_logps(z, y)[0])
    both(batch, lambda h, head, y: fused.sequence_logps(h, y, head), losses.sequence_logps)
    both(batch, lambda h, head, y: fused.nll_loss(h, y, head), losses.nll_loss)
    ref_hidden = torch.randn(3, 7, 4, dtype=torch.float64)
    ref_weight = torch.randn(VOCAB, 4, dtype=torch.float64)
    both(
        batch,
        lambda h, head, y: fused.kl_to_reference(h, ref_hidden, losses.prediction_mask(y), head, Head(ref_weight)),
        lambda z, y: losses.kl_to_reference(z, ref_hidden @ ref_weight.T, losses.prediction_mask(y)),
    )
    both(
        batch,
        lambda h, head, y: fused.uniform_kl(h, y != -100, head, "model_to_uniform", 1.5),
        lambda z, y: losses.uniform_kl(z, y != -100, "model_to_uniform", 1.5),
    )


def test_masked_positions_cost_and_change_nothing(batch):
    hidden, weight, labels = batch
    by_hidden, _ = both(batch, lambda h, head, y: fused.sequence_logps(h, y, head), losses.sequence_logps)
    mask = losses.prediction_mask(labels)
    assert by_hidden[~mask].abs().max() == 0
    assert (by_hidden[mask].abs().sum(-1) > 0).all()
    rows = Predicted.of(labels)
    assert rows.targets.tolist() == labels[:, 1:][labels[:, 1:] != -100].tolist()
    with FlopCounterMode(display=False) as flops:
        fused.sequence_logps(hidden.detach(), labels, Head(weight.detach()))
    assert flops.get_total_flops() == 2 * int(mask.sum()) * WIDTH * VOCAB


@pytest.mark.parametrize("keep_bytes", [TINY, 2**28])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_rows(keep_bytes, frozen):
    case = Case(rows=0, softcap=3.0)
    case.weight.requires_grad_(not frozen)
    case.bias.requires_grad_(not frozen)
    budget = {"keep_bytes": keep_bytes}
    reference = case.ref_hidden, case.ref_head, case.labels
    outs = [
        fused.row_logps(case.hidden, case.labels, case.head, **budget),
        fused.row_kl_to_reference(case.hidden, case.head, *reference, **budget).loss,
        fused.row_kl_to_reference(case.hidden, case.head, *reference, "none", **budget).loss,
        fused.row_uniform_kl(case.hidden, case.head, **budget).loss,
    ]
    assert [tuple(x.shape) for x in outs] == [(0,), (), (0,), ()]
    for out in outs:
        grads = torch.autograd.grad(out.sum(), case.inputs)
        assert out.sum() == 0
        assert [g.shape for g in grads] == [x.shape for x in case.inputs]
        assert all(g.abs().sum() == 0 for g in grads)


def test_no_labels_in_the_batch():
    hidden = torch.randn(2, 4, WIDTH, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
    labels = torch.full((2, 4), -100)
    head = Head(weight)
    for loss in (fused.nll_loss(hidden, labels, head), fused.sequence_logps(hidden, labels, head).sum()):
        loss.backward()
        assert loss == 0
    assert hidden.grad.abs().sum() == 0
    assert weight.grad.abs().sum() == 0


def test_hidden_states_and_labels_of_other_lengths(batch):
    hidden, weight, labels = batch
    with pytest.raises(ValueError, match=r"of \(3, 7\) positions and labels of \(3, 6\).*virtual tokens"):
        fused.nll_loss(hidden, labels[:, 1:], Head(weight))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: fused.row_uniform_kl(c.hidden, c.head, "sideways"), "direction='sideways'"),
        (lambda c: fused.row_uniform_kl(c.hidden, c.head, temperature=0), "temperature=0"),
        (lambda c: fused.row_uniform_kl(c.hidden, c.head, valid_vocab=99), "valid_vocab=99; the head has 13"),
        (lambda c: fused.row_uniform_kl(c.hidden, c.head, reduction="max"), "reduction='max'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Case())


@heads
def test_trl_kernel_is_the_same(options, monkeypatch):
    """On a GPU the seam takes TRL's function; its torch form runs here."""
    from trl.kernels import chunked_logprob

    calls = []
    original = chunked_logprob.ChunkedLogProbFunction.apply
    monkeypatch.setattr(fused_losses, "_trl_fits", lambda hidden: True)
    monkeypatch.setattr(chunked_logprob.ChunkedLogProbFunction, "apply", lambda *a: calls.append(a[5]) or original(*a))
    case = Case(dtype=torch.float32, rows=40, vocab=3000, **options)
    out = fused.row_logps(case.hidden, case.labels, case.head, keep_bytes=1024 * 40 * 4)
    case.same(out, slow_logps(case.slow(), case.labels), rtol=1e-4, atol=1e-5)
    assert calls == [1024]
    fused.row_logps(case.hidden, case.labels, case.head)
    assert len(calls) == 1, "what fits the budget is not recomputed"


def test_trl_kernel_is_for_accelerators_only():
    assert not fused_losses._trl_fits(torch.zeros(1, 1))


def test_import_is_light():
    command = "import sys, hf_unlearn.fused; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
