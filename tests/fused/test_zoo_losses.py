# SPDX-License-Identifier: Apache-2.0
"""Losses of the zoo against formulas spelled out with loops in float64, gradients included, and their limits."""

import math

import pytest
import torch
from test_losses import LABELS, B, V, log_softmax, predicted, random_logits

from hf_unlearn import losses


MASK = losses.prediction_mask(LABELS)[:, :-1]
SPOTS = predicted(LABELS)
TARGETS = torch.tensor([label for _, _, label in SPOTS])
NOTHING = torch.zeros(0, dtype=torch.float64)


def tokens(logits) -> torch.Tensor:
    """Log-probabilities of the predicted tokens, `[N]`."""
    return losses.per_token_logps(logits, LABELS)[0][MASK]


def rows_of(logits) -> torch.Tensor:
    """`[N, V]`, the logits that predict a token."""
    return logits[:, :-1][MASK]


def probabilities(logits) -> list[list[float]]:
    return [[math.exp(x) for x in log_softmax(row.tolist())] for row in rows_of(logits)]


def of_label(logits) -> list[float]:
    return [row[label] for row, (_, _, label) in zip(probabilities(logits), SPOTS, strict=True)]


def gradient(loss, logits) -> torch.Tensor:
    policy = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(policy), policy)[0]


def slow_gradient(slow, logits, step=1e-6) -> torch.Tensor:
    """Central differences of a slow formula, at entries of positions that predict and of some that do not."""
    found = torch.zeros_like(logits)
    for b, t in [(b, t) for b in range(B) for t in range(logits.shape[1])]:
        for v in (0, 4, 7):
            moved = [logits.clone(), logits.clone()]
            moved[0][b, t, v] += step
            moved[1][b, t, v] -= step
            found[b, t, v] = (slow(moved[0]) - slow(moved[1])) / (2 * step)
    return found


def same_gradient(loss, slow, logits) -> None:
    expected = slow_gradient(slow, logits)
    chosen = [0, 4, 7]
    torch.testing.assert_close(gradient(loss, logits)[..., chosen], expected[..., chosen], rtol=1e-6, atol=1e-8)


REF = random_logits(1)


def slow_simnpo(logits, beta, delta) -> float:
    logps, terms = [math.log(p) for p in of_label(logits)], []
    for b in range(B):
        own = [logp for logp, spot in zip(logps, SPOTS, strict=True) if spot[0] == b]
        terms.append(math.log(1 / (1 + math.exp(-beta * (-sum(own) / len(own) - delta)))))
    return -2 / beta * sum(terms) / B


def simnpo(logits, beta, delta=0.0):
    return losses.simnpo_loss(losses.sequence_logps(logits, LABELS), MASK.sum(1), beta, delta)


@pytest.mark.parametrize(("beta", "delta"), [(2.5, 0.0), (0.3, 0.0), (4.5, 1.5)])
def test_simnpo_equals_the_formula_and_its_gradient(beta, delta):
    logits = random_logits()
    assert simnpo(logits, beta, delta).item() == pytest.approx(slow_simnpo(logits, beta, delta), rel=1e-12)
    same_gradient(lambda x: simnpo(x, beta, delta), lambda x: slow_simnpo(x, beta, delta), logits)


def test_simnpo_tends_to_ascent_on_the_means_of_rows_as_beta_tends_to_zero():
    logits, lengths = random_logits(), MASK.sum(1)
    ascent = gradient(lambda x: (losses.sequence_logps(x, LABELS) / lengths).mean(), logits)
    torch.testing.assert_close(gradient(lambda x: simnpo(x, 1e-7), logits), ascent, rtol=1e-5, atol=1e-9)


def test_simnpo_of_one_token_is_npo_with_a_reference_of_the_margin():
    logps, delta = torch.tensor([-3.0, -0.2], dtype=torch.float64), 0.7
    alone = losses.simnpo_loss(logps, torch.ones(2), 0.4, delta)
    assert alone.item() == pytest.approx(losses.npo_loss(logps, torch.full((2,), -delta).double(), 0.4).item())


def test_a_row_without_tokens_gives_simnpo_a_number_and_no_gradient():
    # Published code divides by the count, and returns NaN.
    logps = torch.tensor([-3.0, 0.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.0])
    loss = losses.simnpo_loss(logps * weight, torch.tensor([2, 0]), 2.5)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logps.grad[0] != 0
    assert logps.grad[1] == 0


# Weighted ascent: a slow weight, and the loss, of the predicted tokens' log-probabilities


WEIGHTED = {
    "wga": (lambda p, ref: p**0.7, lambda logps, ref: losses.wga_loss(logps, 0.7)),
    "satimp": (lambda p, ref: p**2 * (1 - p) ** 0.5, lambda logps, ref: losses.satimp_loss(logps, 2.0, 0.5)),
    "tnpo": (lambda p, ref: 2 * p**1.3 / (p**1.3 + ref**1.3), lambda logps, ref: losses.tnpo_loss(logps, ref, 1.3)),
    "wtnpo": (
        lambda p, ref: 2 * p**2.0 / (p**1.3 + ref**1.3),
        lambda logps, ref: losses.wtnpo_loss(logps, ref, 1.3, 0.7),
    ),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_tokens_gradient_is_ascents_times_the_papers_weight(name):
    weight, loss = WEIGHTED[name]
    logits = random_logits()
    weights = [weight(p, ref) for p, ref in zip(of_label(logits), of_label(REF), strict=True)]
    constant = torch.tensor(weights, dtype=torch.float64)
    expected = gradient(lambda x: (constant * tokens(x)).mean(), logits)
    torch.testing.assert_close(gradient(lambda x: loss(tokens(x), tokens(REF)), logits), expected)
    if name != "tnpo":
        value = sum(w * math.log(p) for w, p in zip(weights, of_label(logits), strict=True)) / len(SPOTS)
        assert loss(tokens(logits), tokens(REF)).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_tnpo_equals_the_formula(beta):
    logits = random_logits()
    ratios = [math.log(p / ref) for p, ref in zip(of_label(logits), of_label(REF), strict=True)]
    expected = 2 / beta * sum(math.log(1 + math.exp(beta * ratio)) for ratio in ratios) / len(ratios)
    assert losses.tnpo_loss(tokens(logits), tokens(REF), beta).item() == pytest.approx(expected, rel=1e-12)
    assert losses.tnpo_loss(tokens(REF), tokens(REF), beta).item() == pytest.approx(2 * math.log(2) / beta)


ASCENT_LIMITS = {
    "wga": lambda logps, ref: losses.wga_loss(logps, 0.0),
    "satimp": lambda logps, ref: losses.satimp_loss(logps, 0.0, 0.0),
    "tnpo": lambda logps, ref: losses.tnpo_loss(logps, ref, 1e-9),
    "wtnpo": lambda logps, ref: losses.wtnpo_loss(logps, ref, 0.0, 0.0),
    "wtnpo at the reference": lambda logps, ref: losses.wtnpo_loss(logps, logps, 3.0, 0.0),
}


@pytest.mark.parametrize("name", ASCENT_LIMITS)
def test_without_its_exponents_a_weight_is_that_of_gradient_ascent(name):
    logits = random_logits()
    ascent = gradient(lambda x: tokens(x).mean(), logits)
    found = gradient(lambda x: ASCENT_LIMITS[name](tokens(x), tokens(REF)), logits)
    torch.testing.assert_close(found, ascent, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", WEIGHTED)
def test_certain_forgotten_and_no_tokens_are_no_trouble(name):
    loss = WEIGHTED[name][1]
    # A probability that float32 rounds to 1, or to a little above, and one that it rounds to 0.
    logps = torch.tensor([0.0, 1e-8, -1e4], requires_grad=True)
    value = loss(logps, torch.tensor([-1.0, -1.0, -1.0]))
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(logps.grad).all()
    assert logps.grad[2] == 0
    nothing = NOTHING.clone().requires_grad_()
    empty = loss(nothing, NOTHING)
    empty.backward()
    assert empty.item() == 0


# Whole predictions


def slow_ceu(logits) -> list[float]:
    found = []
    for p, (_, _, label) in zip(probabilities(logits), SPOTS, strict=True):
        rest = sum(x for v, x in enumerate(p) if v != label)
        found.append(-sum(x / rest * math.log(x) for v, x in enumerate(p) if v != label))
    return found


def slow_undial(logits, beta=3.0) -> list[float]:
    found = []
    for p, row, (_, _, label) in zip(probabilities(logits), rows_of(REF), SPOTS, strict=True):
        lowered = [x - beta * (v == label) for v, x in enumerate(row.tolist())]
        found.append(-sum(math.exp(q) * math.log(x) for q, x in zip(log_softmax(lowered), p, strict=True)))
    return found


def slow_ihl(logits) -> list[float]:
    return [
        1 + p[label] - max(x for v, x in enumerate(p) if v != label)
        for p, (_, _, label) in zip(probabilities(logits), SPOTS, strict=True)
    ]


def slow_unilogit(logits) -> list[float]:
    found = []
    for p, (_, _, label) in zip(probabilities(logits), SPOTS, strict=True):
        rest = sum(x for v, x in enumerate(p) if v != label)
        target = [1 / V if v == label else x / rest * (1 - 1 / V) for v, x in enumerate(p)]
        found.append(sum(x * math.log(x / y) for x, y in zip(p, target, strict=True)))
    return found


def slow_unlikelihood(logits) -> list[float]:
    return [-math.log(1 - p[label]) for p, (_, _, label) in zip(probabilities(logits), SPOTS, strict=True)]


def slow_negative_entropy(logits) -> list[float]:
    return [sum(x * math.log(x) for x in p) for p in probabilities(logits)]


def slow_pdu(logits) -> list[float]:
    return [(max(row) - sum(row) / V) ** 2 for row in rows_of(logits).tolist()]


ROWS = {
    "ceu": (slow_ceu, lambda logits: losses.ceu_rows(logits, TARGETS)),
    "undial": (slow_undial, lambda logits: losses.undial_rows(logits, rows_of(REF), TARGETS, 3.0)),
    "ihl": (slow_ihl, lambda logits: losses.ihl_rows(logits, TARGETS)),
    "unilogit": (slow_unilogit, lambda logits: losses.unilogit_rows(logits, TARGETS)),
    "unlikelihood": (slow_unlikelihood, lambda logits: losses.unlikelihood_rows(logits, TARGETS)),
    "max_entropy": (slow_negative_entropy, losses.negative_entropy_rows),
    "pdu": (slow_pdu, losses.pdu_rows),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_equal_the_formula(name):
    slow, fast = ROWS[name]
    found = fast(rows_of(random_logits()))
    assert found.shape == TARGETS.shape
    torch.testing.assert_close(found, torch.tensor(slow(random_logits()), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def at_fixed_target(name, logits):
    """The term as a function of the prediction alone: what a constant target leaves of it, spelled out."""
    fixed = probabilities(logits)

    def slow(moved) -> float:
        total = 0.0
        for p, q, (_, _, label) in zip(probabilities(moved), fixed, SPOTS, strict=True):
            rest = 1 - q[label]
            if name == "ceu":
                total -= sum(y / rest * math.log(x) for v, (x, y) in enumerate(zip(p, q, strict=True)) if v != label)
            else:
                target = [1 / V if v == label else y / rest * (1 - 1 / V) for v, y in enumerate(q)]
                total += sum(x * math.log(x / y) for x, y in zip(p, target, strict=True))
        return total

    return slow


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_rows_equal_the_formulas_and_targets_are_constant(name):
    slow, fast = ROWS[name]
    logits = random_logits()
    by_hand = at_fixed_target(name, logits) if name in ("ceu", "unilogit") else lambda x: sum(slow(x))
    same_gradient(lambda x: fast(rows_of(x)).sum(), by_hand, logits)


def test_ceu_has_the_gradient_of_prediction_minus_target_and_ends_where_the_label_is_impossible():
    logits = rows_of(random_logits()).requires_grad_()
    (found,) = torch.autograd.grad(losses.ceu_rows(logits, TARGETS).sum(), logits)
    p = logits.detach().softmax(-1)
    hit = torch.zeros_like(p).scatter(-1, TARGETS[:, None], 1.0)
    others = p * (1 - hit)
    torch.testing.assert_close(found, p - others / others.sum(-1, keepdim=True))
    forgotten = logits.detach().masked_fill(hit.bool(), -1e4).requires_grad_()
    (ended,) = torch.autograd.grad(losses.ceu_rows(forgotten, TARGETS).sum(), forgotten)
    assert ended.abs().max() < 1e-12


def test_undial_without_beta_is_distillation_and_the_entropy_of_the_reference():
    logits, ref = rows_of(random_logits()), rows_of(REF)
    q = ref.softmax(-1)
    entropy = -(q * q.log()).sum(-1)
    expected = losses.distillation_rows(logits, ref) + entropy
    torch.testing.assert_close(losses.undial_rows(logits, ref, TARGETS, 0.0), expected)
    # At the target it is the target's entropy, and has no gradient.
    target = ref.scatter_add(-1, TARGETS[:, None], torch.full((len(TARGETS), 1), -3.0).double()).requires_grad_()
    (found,) = torch.autograd.grad(losses.undial_rows(target, ref, TARGETS, 3.0).sum(), target)
    assert found.abs().max() < 1e-12


def test_undial_leaves_the_reference_as_it_is():
    ref = rows_of(REF).clone().requires_grad_()
    before = ref.detach().clone()
    logits = rows_of(random_logits()).requires_grad_()
    losses.undial_rows(logits, ref, TARGETS, 3.0).sum().backward()
    assert ref.grad is None
    assert torch.equal(ref.detach(), before)


def test_the_hinge_is_between_zero_and_two_and_moves_the_label_and_its_rival_apart():
    sure = torch.full((2, V), -1e4)
    sure[0, 3] = sure[1, 5] = 1e4
    assert losses.ihl_rows(sure, torch.tensor([3, 3])).tolist() == pytest.approx([2.0, 0.0])
    logits = torch.tensor([[1.0, 2.0, 0.5, 0.0]], requires_grad=True)
    losses.ihl_rows(logits, torch.tensor([1])).sum().backward()
    # Of the others the likeliest rises most.
    assert logits.grad[0, 1] > 0
    assert logits.grad[0].argmin() == 0


def test_unilogit_makes_the_label_as_likely_as_chance_and_rests_there():
    logits = rows_of(random_logits()).clone()
    others = logits.scatter(-1, TARGETS[:, None], -math.inf).logsumexp(-1, keepdim=True)
    resting = logits.scatter(-1, TARGETS[:, None], others - math.log(V - 1)).requires_grad_()
    chance = resting.softmax(-1).gather(-1, TARGETS[:, None])
    torch.testing.assert_close(chance, torch.full_like(chance, 1 / V))
    value = losses.unilogit_rows(resting, TARGETS)
    (found,) = torch.autograd.grad(value.sum(), resting)
    assert value.abs().max() < 1e-12
    assert found.abs().max() < 1e-12
    # Above chance the label's logit falls, below it rises.
    for shift, sign in ((2.0, 1), (-2.0, -1)):
        moved = resting.detach().scatter_add(-1, TARGETS[:, None], torch.full((len(TARGETS), 1), shift).double())
        moved.requires_grad_()
        (found,) = torch.autograd.grad(losses.unilogit_rows(moved, TARGETS).sum(), moved)
        assert (sign * found.gather(-1, TARGETS[:, None]) > 0).all()


def test_unlikelihood_is_exact_where_the_label_is_certain_and_rests_where_it_is_impossible():
    # In float32 log(1 - p) is minus infinity from p = 1 - 6e-8 on; published code has no gradient there, or NaN.
    logits = torch.tensor([[40.0, 0.0, 1.0], [-200.0, 0.0, 1.0]], requires_grad=True)
    value = losses.unlikelihood_rows(logits, torch.tensor([0, 0]))
    (found,) = torch.autograd.grad(value.sum(), logits)
    assert value.tolist() == pytest.approx([40 - math.log(1 + math.e), 0.0], abs=1e-4)
    p = 1 / (1 + math.e)
    torch.testing.assert_close(found, torch.tensor([[1.0, -p, p - 1], [0.0, 0.0, 0.0]]))
    # Bounded by the label's probability, where ascent's is 1 - p.
    logits = rows_of(random_logits()).requires_grad_()
    (found,) = torch.autograd.grad(losses.unlikelihood_rows(logits, TARGETS).sum(), logits)
    torch.testing.assert_close(found.gather(-1, TARGETS[:, None]), logits.softmax(-1).gather(-1, TARGETS[:, None]))


def test_the_margin_is_zero_at_uniform_and_does_not_change_with_a_shift():
    assert losses.pdu_rows(torch.full((2, V), 3.0)).tolist() == [0.0, 0.0]
    logits = rows_of(random_logits())
    torch.testing.assert_close(losses.pdu_rows(logits + 7.0), losses.pdu_rows(logits))
    # Of a certain prediction its gradient stays, where entropy's has vanished.
    sure = torch.zeros(1, V).index_fill(1, torch.tensor([2]), 1e3).requires_grad_()
    (found,) = torch.autograd.grad(losses.pdu_rows(sure).sum(), sure)
    assert found[0, 2] > 1e3
    # An entry that is impossible is no part of the mean.
    without = torch.cat([logits, torch.full((len(logits), 1), -math.inf).double()], -1)
    torch.testing.assert_close(losses.pdu_rows(without), losses.pdu_rows(logits))


def test_entropy_is_largest_at_uniform_and_differs_from_the_divergence_by_a_constant():
    assert losses.negative_entropy_rows(torch.full((2, V), 3.0)).tolist() == pytest.approx([-math.log(V)] * 2)
    sure = torch.zeros(1, V).index_fill(1, torch.tensor([2]), 1e4).requires_grad_()
    value = losses.negative_entropy_rows(sure)
    (found,) = torch.autograd.grad(value.sum(), sure)
    assert value.item() == 0
    assert found.abs().max() == 0
    logits = rows_of(random_logits())
    to_uniform = losses.uniform_kl_rows(logits, "model_to_uniform")
    torch.testing.assert_close(losses.negative_entropy_rows(logits), to_uniform - math.log(V))


@pytest.mark.parametrize("name", ROWS)
def test_entries_that_are_impossible_and_no_tokens_are_no_trouble(name):
    # Some models set what only pads the vocabulary to minus infinity.
    slow_logits, ref = rows_of(random_logits()).clone(), rows_of(REF).clone()
    slow_logits[:, 8] = ref[:, 8] = -math.inf
    labels = TARGETS.masked_fill(TARGETS == 8, 1)
    call = {
        "ceu": lambda x, n: losses.ceu_rows(x, labels[:n]),
        "undial": lambda x, n: losses.undial_rows(x, ref[:n], labels[:n], 3.0),
        "ihl": lambda x, n: losses.ihl_rows(x, labels[:n]),
        "unilogit": lambda x, n: losses.unilogit_rows(x, labels[:n]),
        "unlikelihood": lambda x, n: losses.unlikelihood_rows(x, labels[:n]),
        "max_entropy": lambda x, n: losses.negative_entropy_rows(x),
        "pdu": lambda x, n: losses.pdu_rows(x),
    }[name]
    logits = slow_logits.requires_grad_()
    value = call(logits, len(labels))
    (found,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0
    assert call(logits[:0], 0).shape == (0,)


@pytest.mark.parametrize("name", ROWS)
def test_half_precision_is_computed_in_float32(name):
    logits = rows_of(random_logits()).to(torch.bfloat16)
    found = ROWS[name][1](logits)
    assert found.dtype == (torch.float64 if name == "undial" else torch.float32)
    torch.testing.assert_close(found.double(), ROWS[name][1](logits.double()), rtol=1e-5, atol=1e-5)


# Who's Harry Potter


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("hard", [False, True])
def test_whp_equals_its_formula_and_gradient(alpha, hard):
    logits, base, reinforced = random_logits(0), random_logits(1), random_logits(2)

    def slow(policy) -> float:
        total = 0.0
        for ours, ref, raised in zip(*map(rows_of, (policy, base, reinforced)), strict=True):
            log_p = log_softmax(ours.tolist())
            generic = [z - alpha * max(r - z, 0) for z, r in zip(ref.tolist(), raised.tolist(), strict=True)]
            target = [math.exp(x) for x in log_softmax(generic)]
            if hard:
                target = [float(x == max(generic)) for x in generic]
            total -= sum(q * x for q, x in zip(target, log_p, strict=True))
        return total

    def loss(policy):
        return losses.whp_rows(rows_of(policy), generic, hard).sum()

    generic = losses.whp_targets(rows_of(base), rows_of(reinforced), alpha)
    assert loss(logits).item() == pytest.approx(slow(logits), rel=1e-12)
    same_gradient(loss, slow, logits)


def test_whp_leaves_what_the_reinforced_model_does_not_raise():
    base, reinforced = random_logits(1), random_logits(2)
    generic = losses.whp_targets(base, reinforced, 5.0)
    lowered = reinforced > base
    assert lowered.any()
    assert (generic < base)[lowered].all()
    assert torch.equal(generic[~lowered], base[~lowered])
    # A model that learned nothing changes nothing, whatever alpha is; and the base model itself is then the optimum.
    assert torch.equal(losses.whp_targets(base, base, 1e6), base)
    policy = rows_of(base).clone().requires_grad_()
    (at_base,) = torch.autograd.grad(losses.whp_rows(policy, rows_of(base)).sum(), policy)
    assert at_base.abs().max() < 1e-15


def test_whp_takes_no_gradient_of_either_frozen_model():
    logits, base, reinforced = (random_logits(seed).requires_grad_() for seed in range(3))
    loss = losses.whp_rows(rows_of(logits), losses.whp_targets(rows_of(base), rows_of(reinforced), 2.0)).sum()
    found = torch.autograd.grad(loss, (logits, base, reinforced), allow_unused=True)
    assert found[0] is not None
    assert found[1:] == (None, None)
