# SPDX-License-Identifier: Apache-2.0
"""Losses over pairs of answers and over fixed targets, against formulas spelled out in float64, and their limits."""

import math

import pytest
import torch

from hf_unlearn import losses


LN2 = math.log(2)
# log-probabilities of alternate and forget answers, policy and reference.
ALT, REF_ALT, OWN, REF_OWN = [-5.0, -31.0, -0.2], [-9.0, -30.0, -4.0], [-40.0, -3.0, -11.5], [-12.0, -9.0, -11.0]
PAIRS = [torch.tensor(values, dtype=torch.float64) for values in (ALT, REF_ALT, OWN, REF_OWN)]


def gradient(function, *tensors):
    """Of a scalar function by each of its tensors."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*tensors), tensors)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_and_its_gradient_equal_the_formula(beta):
    margins = [(a - ra) - (f - rf) for a, ra, f, rf in zip(ALT, REF_ALT, OWN, REF_OWN, strict=True)]
    expected = 2 / beta * sum(math.log(1 + math.exp(-beta * margin)) for margin in margins) / len(margins)
    assert losses.dpo_unlearn_loss(*PAIRS, beta).item() == pytest.approx(expected, rel=1e-12)
    pulls = [2 / (1 + math.exp(beta * margin)) / len(margins) for margin in margins]
    by_alt, _, by_own, _ = gradient(lambda *all_four: losses.dpo_unlearn_loss(*all_four, beta), *PAIRS)
    torch.testing.assert_close(by_own, torch.tensor(pulls, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(by_alt, -by_own, rtol=1e-12, atol=0)


def test_limits_of_dpo():
    for beta in (0.05, 1.0):
        # At the reference, whatever the answers' probabilities are.
        assert losses.dpo_unlearn_loss(PAIRS[0], PAIRS[0], PAIRS[2], PAIRS[2], beta).item() == pytest.approx(
            2 * LN2 / beta
        )
        # An alternate that stays as likely as it was leaves NPO.
        stays = losses.dpo_unlearn_loss(PAIRS[0], PAIRS[0], *PAIRS[2:], beta)
        assert stays.item() == pytest.approx(losses.npo_loss(*PAIRS[2:], beta).item(), rel=1e-12)
    # As beta tends to 0: ascent on the one answer and descent on the other.
    by_alt, _, by_own, _ = gradient(lambda *all_four: losses.dpo_unlearn_loss(*all_four, 1e-6), *PAIRS)
    torch.testing.assert_close(by_own, torch.full_like(by_own, 1 / 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(by_alt, torch.full_like(by_alt, -1 / 3), rtol=1e-4, atol=0)


# -g*(p) of the alternate answer and f*(g*(p)) of the forget answer, by hand.
FLAT = {
    "total_variation": (lambda p: -0.5 * math.tanh(p), lambda p: 0.5 * math.tanh(p)),
    "kl": (lambda p: -p, lambda p: math.exp(p - 1)),
    "jensen_shannon": (
        lambda p: -(LN2 - math.log(1 + math.exp(-p))),
        lambda p: p + math.log(1 + math.exp(-p)) - LN2,
    ),
    "pearson": (lambda p: -p, lambda p: p**2 / 4 + p),
    "reverse_kl": (lambda p: math.exp(p), lambda p: -1 - p),
    "squared_hellinger": (lambda p: -(1 - math.exp(p)), lambda p: (1 - math.exp(p)) / math.exp(p)),
    "jeffrey": (lambda p: -p, lambda p: p + p**2 / 4 + p**3 / 16),
    "neyman": (lambda p: -(1 - math.exp(p)), lambda p: 2 - 2 * math.sqrt(1 - p)),
}


def test_every_divergence_is_here():
    assert {*FLAT} == {*losses.FLAT_TERMS}
    with pytest.raises(ValueError, match="divergence='tv'; allowed: 'total_variation', .*'neyman'"):
        losses.flat_loss(torch.zeros(1), torch.zeros(1), "tv")


@pytest.mark.parametrize("name", FLAT)
def test_flat_and_its_gradient_equal_the_formula(name):
    alternate, forgotten = [0.02, 0.4, 0.97], [0.9, 0.5, 0.001]
    prefer, forget = FLAT[name]
    expected = sum(prefer(a) + forget(f) for a, f in zip(alternate, forgotten, strict=True)) / 3
    given = [torch.tensor(values, dtype=torch.float64) for values in (alternate, forgotten)]
    assert losses.flat_loss(*given, name).item() == pytest.approx(expected, rel=1e-12)
    step = 1e-6
    for values, function, found in zip(
        (alternate, forgotten),
        (prefer, forget),
        gradient(lambda a, f: losses.flat_loss(a, f, name), *given),
        strict=True,
    ):
        slopes = [(function(p + step) - function(p - step)) / (2 * step) / 3 for p in values]
        torch.testing.assert_close(found, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_three_published_divergences_pull_the_wrong_way():
    # As the page and the docstring say; who changes the signs changes what is held against the paper.
    p = torch.tensor([0.3], dtype=torch.float64)
    pulls = {
        name: [g.item() > 0 for g in gradient(lambda a, f, n=name: losses.flat_loss(a, f, n), p, p)] for name in FLAT
    }
    right, wrong = [False, True], [True, False]
    expected = {**dict.fromkeys(FLAT, right), "reverse_kl": wrong, "squared_hellinger": wrong, "neyman": [True, True]}
    assert pulls == expected


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_has_a_finite_gradient_where_answers_are_certain(name, dtype):
    # A learnt answer has probability 1 in float32; the root of Neyman's term has no slope there.
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], dtype=dtype, requires_grad=True)
    p = logits.log_softmax(-1)[:, 0].exp()
    losses.flat_loss(p, p, name).backward()
    assert torch.isfinite(logits.grad).all()


def slow_js(p: list[float], q: list[float]) -> float:
    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    mixed = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, mixed) + kl(q, mixed)) / 2


def distributions(seed: int, scale: float = 2.0):
    logits = scale * torch.randn((5, 11), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits, logits.softmax(-1).tolist()


def test_jensun_equals_the_divergence_over_all_entries():
    logits, p = distributions(0)
    target = torch.tensor([0, 3, 10, 3, 7])
    one_hot = torch.eye(11, dtype=torch.float64)[target].tolist()
    expected = [slow_js(*pair) for pair in zip(p, one_hot, strict=True)]
    torch.testing.assert_close(losses.jensun_rows(logits, target), torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(lambda x: losses.jensun_rows(x, target), logits.requires_grad_())


def test_limits_of_jensun():
    logps = torch.tensor([0.0, -1e-9, -200.0, -1e6], requires_grad=True)
    values = losses.one_hot_js(logps)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, LN2, LN2]), rtol=0, atol=1e-6)
    values.sum().backward()
    assert torch.isfinite(logps.grad).all()
    # d/dlogp is p / 2 ln(p / (1 + p)): never up, and none where the target is all but excluded.
    torch.testing.assert_close(logps.grad, torch.tensor([-LN2 / 2, -LN2 / 2, 0.0, 0.0]), rtol=1e-5, atol=1e-7)


def test_js_equals_the_formula_is_symmetric_and_bounded():
    (logits, p), (ref, q) = distributions(0), distributions(1)
    expected = torch.tensor([slow_js(*pair) for pair in zip(p, q, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(losses.js_rows(logits, ref), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.js_rows(ref, logits), expected, rtol=1e-12, atol=0)
    apart = losses.js_rows(torch.tensor([[300.0, 0.0]]), torch.tensor([[0.0, 300.0]]))
    assert apart.item() == pytest.approx(LN2, rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: losses.js_rows(x, ref), logits.clone().requires_grad_())
    at_reference, _ = gradient(lambda x, y: losses.js_rows(x, y).sum() + 0 * y.sum(), logits, logits)
    assert at_reference.abs().max() < 1e-15
    # The reference is a constant.
    (by_ref,) = gradient(lambda y: losses.js_rows(logits, y).sum() + 0 * y.sum(), ref)
    assert not by_ref.any()
