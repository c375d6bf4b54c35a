# SPDX-License-Identifier: Apache-2.0
"""Each loss against a formula spelled out with loops in float64, and against what theory says of its limits."""

import math

import pytest
import torch

from hf_unlearn import losses


B, T, V, D = 3, 7, 11, 5
LABELS = torch.tensor(
    [
        [-100, -100, 4, 7, 1, -100, -100],  # a prompt, an answer, padding
        [3, 2, 9, 10, 0, 6, 5],  # plain text: the first label has nothing before it
        [-100, 8, -100, -100, 2, 2, -100],  # two turns
    ]
)


def random_logits(seed=0, scale=2.0, dtype=torch.float64):
    return (torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def log_softmax(row: list[float]) -> list[float]:
    log_z = math.log(sum(math.exp(x) for x in row))
    return [x - log_z for x in row]


def predicted(labels) -> list[tuple[int, int, int]]:
    """(row, position that predicts, label) of every trained token, by hand."""
    return [
        (b, t - 1, int(labels[b, t]))
        for b in range(labels.shape[0])
        for t in range(1, labels.shape[1])
        if labels[b, t] != -100
    ]


def slow_logps(logits, labels) -> list[float]:
    sums = [0.0] * labels.shape[0]
    for b, t, label in predicted(labels):
        sums[b] += log_softmax(logits[b, t].tolist())[label]
    return sums


def slow_nll(logits, labels) -> float:
    terms = [-log_softmax(logits[b, t].tolist())[label] for b, t, label in predicted(labels)]
    return sum(terms) / len(terms)


def slow_kl(p_row, q_row) -> float:
    """KL(p || q) of two rows of logits."""
    log_p, log_q = log_softmax(p_row), log_softmax(q_row)
    return sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def test_per_token_logps_equal_the_formula():
    logits = random_logits()
    logps, mask = losses.per_token_logps(logits, LABELS)
    assert logps.shape == mask.shape == (B, T - 1)
    slow = torch.zeros(B, T - 1, dtype=torch.float64)
    slow_mask = torch.zeros(B, T - 1, dtype=torch.bool)
    for b, t, label in predicted(LABELS):
        slow[b, t] = log_softmax(logits[b, t].tolist())[label]
        slow_mask[b, t] = True
    torch.testing.assert_close(logps, slow, rtol=1e-12, atol=1e-12)
    assert torch.equal(mask, slow_mask)


def test_sequence_logps_are_sums_over_a_row():
    logits = random_logits()
    expected = torch.tensor(slow_logps(logits, LABELS), dtype=torch.float64)
    torch.testing.assert_close(losses.sequence_logps(logits, LABELS), expected, rtol=1e-12, atol=1e-12)


def test_nll_is_the_mean_over_tokens_not_over_rows():
    logits = random_logits()
    nll = losses.nll_loss(logits, LABELS).item()
    assert nll == pytest.approx(slow_nll(logits, LABELS), abs=1e-12)
    row_means = [slow_nll(logits[b : b + 1], LABELS[b : b + 1]) for b in range(B)]
    assert nll != pytest.approx(sum(row_means) / B, abs=1e-3)


def test_nll_equals_the_model_loss_of_transformers(model):
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = -100
    output = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(losses.nll_loss(output.logits, labels), output.loss)


def test_prediction_mask_stands_one_before_the_label():
    expected = torch.zeros(B, T, dtype=torch.bool)
    for b, t, _ in predicted(LABELS):
        expected[b, t] = True
    assert torch.equal(losses.prediction_mask(LABELS), expected)
    assert not losses.prediction_mask(LABELS)[:, -1].any()


def test_masked_mean_of_nothing_is_zero_with_a_zero_gradient():
    values = torch.randn(4, requires_grad=True)
    mean = losses.masked_mean(values, torch.zeros(4, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(values.grad, torch.zeros(4))


def test_rows_without_labels_give_zero_not_nan():
    logits = random_logits().requires_grad_()
    nothing = torch.full((B, T), -100)
    mask = losses.prediction_mask(nothing)
    total = losses.nll_loss(logits, nothing) + losses.sequence_logps(logits, nothing).sum()
    total = total + losses.kl_to_reference(logits, random_logits(1), mask) + losses.uniform_kl(logits, mask)
    total.backward()
    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_npo_equals_the_formula(beta):
    logps, ref_logps = [-40.0, -3.0, -11.5], [-12.0, -9.0, -11.0]
    terms = [-math.log(1 / (1 + math.exp(beta * (logp - ref)))) for logp, ref in zip(logps, ref_logps, strict=True)]
    expected = 2 / beta * sum(terms) / len(terms)
    loss = losses.npo_loss(torch.tensor(logps).double(), torch.tensor(ref_logps).double(), beta)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference_is_two_ln_two_over_beta(beta):
    logps = torch.tensor([-300.0, -0.1])
    assert losses.npo_loss(logps, logps, beta).item() == pytest.approx(2 * math.log(2) / beta, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_token_npo_equals_the_formula(beta):
    logps, ref_logps = [-4.0, -3.0, -11.5, -0.01], [-2.0, -9.0, -11.0, -7.0]
    pairs = list(zip(logps, ref_logps, strict=True))
    expected = sum(-math.log(1 / (1 + math.exp(-beta * (ref - logp)))) for logp, ref in pairs) / len(pairs)
    policy, reference = (torch.tensor(values, dtype=torch.float64) for values in (logps, ref_logps))
    loss = losses.npo_token_loss(policy, reference, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    # A row of one token is the same ratio by either formula, but for the factor.
    alone = policy[:1], reference[:1], beta
    assert losses.npo_token_loss(*alone).item() == pytest.approx(losses.npo_loss(*alone).item() * beta / 2, rel=1e-12)


def test_token_npo_at_the_reference_is_ln_two_whatever_beta_is():
    logps = torch.tensor([-300.0, -0.1, -5.0])
    for beta in (0.05, 0.1, 1.0):
        assert losses.npo_token_loss(logps, logps, beta).item() == pytest.approx(math.log(2), rel=1e-6)
    nothing = torch.zeros(0, requires_grad=True)
    loss = losses.npo_token_loss(nothing, nothing, 0.1)
    loss.backward()
    assert loss.item() == 0


def test_token_npo_fades_token_by_token():
    logps = torch.tensor([-2.0, -200.0], requires_grad=True)
    losses.npo_token_loss(logps, torch.tensor([-2.0, -2.0]), 0.1).backward()
    # d/dlogp of -log sigmoid(beta (ref - logp)) is beta sigmoid(beta (logp - ref)); half of that is the mean's.
    assert logps.grad[0].item() == pytest.approx(0.1 * 0.5 / 2)
    assert 0 < logps.grad[1].item() < 1e-8


def test_npo_survives_rows_that_are_forgotten_or_learnt_completely():
    logps = torch.tensor([-1e6, 0.0], requires_grad=True)
    loss = losses.npo_loss(logps, torch.tensor([-10.0, -1e6]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    # Forgotten rows get no push, learnt ones that of gradient ascent, twice: 2 p^b / (p^b + p_ref^b) tends to 2.
    torch.testing.assert_close(logps.grad, torch.tensor([0.0, 2.0 / 2]))


@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_npo_gradient_is_that_of_ascent_times_the_adaptive_weight(beta):
    logits, ref = random_logits(), random_logits(1)
    ref_logps = losses.sequence_logps(ref, LABELS)
    policy = logits.clone().requires_grad_()
    (npo,) = torch.autograd.grad(losses.npo_loss(losses.sequence_logps(policy, LABELS), ref_logps, beta), policy)
    policy = logits.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(losses.sequence_logps(policy, LABELS).mean(), policy)
    for b in range(B):
        p, p_ref = (math.exp(slow_logps(x, LABELS)[b]) for x in (logits, ref))
        weight = 2 * p**beta / (p**beta + p_ref**beta)
        torch.testing.assert_close(npo[b], weight * ascent[b], rtol=1e-9, atol=1e-12)


def test_npo_tends_to_gradient_ascent_as_beta_tends_to_zero():
    logits, ref_logps = random_logits(), losses.sequence_logps(random_logits(1), LABELS)
    policy = logits.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(losses.sequence_logps(policy, LABELS).mean(), policy)
    distances = []
    for beta in (1e-1, 1e-2, 1e-3, 1e-4):
        policy = logits.clone().requires_grad_()
        (npo,) = torch.autograd.grad(losses.npo_loss(losses.sequence_logps(policy, LABELS), ref_logps, beta), policy)
        distances.append((npo - ascent).abs().max().item())
    assert distances[-1] < 1e-3 * ascent.abs().max().item()
    assert distances == sorted(distances, reverse=True)


def test_kl_equals_the_formula_and_runs_from_reference_to_model():
    logits, ref = random_logits(), random_logits(1)
    mask = losses.prediction_mask(LABELS)
    spots = [(b, t) for b in range(B) for t in range(T) if mask[b, t]]
    forward = sum(slow_kl(ref[b, t].tolist(), logits[b, t].tolist()) for b, t in spots) / len(spots)
    backward = sum(slow_kl(logits[b, t].tolist(), ref[b, t].tolist()) for b, t in spots) / len(spots)
    kl = losses.kl_to_reference(logits, ref, mask).item()
    assert kl == pytest.approx(forward, abs=1e-12)
    assert kl != pytest.approx(backward, rel=1e-2)


def test_kl_takes_the_mask_as_it_is():
    logits, ref = random_logits(), random_logits(1)
    mask = torch.zeros(B, T, dtype=torch.long)
    mask[1, 3] = mask[2, T - 1] = 1
    expected = (
        slow_kl(ref[1, 3].tolist(), logits[1, 3].tolist()) + slow_kl(ref[2, -1].tolist(), logits[2, -1].tolist())
    ) / 2
    assert losses.kl_to_reference(logits, ref, mask).item() == pytest.approx(expected, abs=1e-12)


def test_kl_of_a_model_with_itself_is_zero_and_flat():
    logits = random_logits().requires_grad_()
    kl = losses.kl_to_reference(logits, logits, losses.prediction_mask(LABELS))
    kl.backward()
    assert kl.item() == 0
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-15)


def test_kl_is_never_negative_and_gives_the_reference_no_gradient():
    mask = losses.prediction_mask(LABELS)
    for seed in range(20):
        logits, ref = random_logits(seed), random_logits(seed + 100).requires_grad_()
        logits.requires_grad_()
        kl = losses.kl_to_reference(logits, ref, mask)
        kl.backward()
        assert kl.item() > 0
        assert ref.grad is None


def test_kl_ignores_constants_added_to_logits():
    logits, ref, mask = random_logits(), random_logits(1), losses.prediction_mask(LABELS)
    shifted = logits + torch.randn(B, T, 1, dtype=torch.float64)
    torch.testing.assert_close(losses.kl_to_reference(shifted, ref, mask), losses.kl_to_reference(logits, ref, mask))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["uniform_to_model", "model_to_uniform"])
def test_uniform_kl_equals_the_formula(direction, temperature):
    logits, mask = random_logits(), losses.prediction_mask(LABELS)
    uniform = [0.0] * V
    values = []
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                row = [x / temperature for x in logits[b, t].tolist()]
                pair = (uniform, row) if direction == "uniform_to_model" else (row, uniform)
                values.append(slow_kl(*pair))
    kl = losses.uniform_kl(logits, mask, direction, temperature).item()
    assert kl == pytest.approx(sum(values) / len(values), abs=1e-12)


@pytest.mark.parametrize("direction", ["uniform_to_model", "model_to_uniform"])
def test_uniform_kl_is_zero_only_for_a_uniform_prediction(direction):
    mask = torch.ones(B, T)
    assert losses.uniform_kl(torch.full((B, T, V), 3.0), mask, direction).item() == pytest.approx(0, abs=1e-6)
    assert losses.uniform_kl(random_logits(), mask, direction).item() > 0.1


def test_uniform_kl_stays_alive_on_a_peaked_prediction_only_from_the_uniform_side():
    gradients = {}
    for direction in ("uniform_to_model", "model_to_uniform"):
        logits = torch.zeros(1, 1, V)
        logits[..., 0] = 60.0
        logits.requires_grad_()
        losses.uniform_kl(logits, torch.ones(1, 1), direction).backward()
        gradients[direction] = logits.grad.abs().max().item()
    assert gradients["uniform_to_model"] > 0.5
    assert gradients["model_to_uniform"] < 1e-6


def test_uniform_kl_names_the_directions_it_knows():
    with pytest.raises(ValueError, match=r"direction='sideways'.*'uniform_to_model', 'model_to_uniform'"):
        losses.uniform_kl(random_logits(), torch.ones(B, T), "sideways")


def test_rmu_equals_the_formula_for_rows_of_unequal_length():
    # The widely used implementation divides [b] by [b, 1] and weighs every row by the lengths of the others.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    target = torch.randn(D, generator=generator, dtype=torch.float64)
    lengths = [2, 6, 4]
    mask = torch.tensor([[t < n for t in range(T)] for n in lengths])
    squares = [
        (hidden[b, t, d] - target[d]).item() ** 2 for b, n in enumerate(lengths) for t in range(n) for d in range(D)
    ]
    assert losses.rmu_loss(hidden, target, mask).item() == pytest.approx(sum(squares) / len(squares), abs=1e-12)
    full = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    squares = [
        (hidden[b, t, d] - full[b, t, d]).item() ** 2
        for b, n in enumerate(lengths)
        for t in range(n)
        for d in range(D)
    ]
    assert losses.rmu_loss(hidden, full, mask).item() == pytest.approx(sum(squares) / len(squares), abs=1e-12)


def test_rmu_gives_no_gradient_to_the_target_nor_to_masked_positions():
    hidden = torch.randn(1, 4, D, requires_grad=True)
    target = torch.randn(1, 4, D, requires_grad=True)
    losses.rmu_loss(hidden, target, torch.tensor([[1, 1, 0, 0]])).backward()
    assert target.grad is None
    assert hidden.grad[0, :2].abs().min() > 0
    assert torch.equal(hidden.grad[0, 2:], torch.zeros(2, D))


def objectives(logits, labels, ref):
    """Every loss on one batch, by name."""
    mask = losses.prediction_mask(labels)
    logps, ref_logps = losses.sequence_logps(logits, labels), losses.sequence_logps(ref, labels)
    return {
        "nll": losses.nll_loss(logits, labels),
        "npo": losses.npo_loss(logps, ref_logps, 0.1),
        "kl": losses.kl_to_reference(logits, ref, mask),
        "uniform_to_model": losses.uniform_kl(logits, mask),
        "model_to_uniform": losses.uniform_kl(logits, mask, "model_to_uniform"),
    }


NAMES = list(objectives(random_logits(), LABELS, random_logits(1)))


@pytest.mark.parametrize("name", NAMES)
def test_only_positions_that_predict_a_label_get_a_gradient(name):
    logits = random_logits().requires_grad_()
    (gradient,) = torch.autograd.grad(objectives(logits, LABELS, random_logits(1))[name], logits)
    trained = losses.prediction_mask(LABELS)
    assert torch.equal(gradient[~trained], torch.zeros_like(gradient[~trained]))
    assert gradient[trained].abs().amax(-1).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    logits, ref = random_logits(), random_logits(1)
    pad = 5
    more = [torch.cat([x, random_logits(seed)[:, :pad]], 1) for seed, x in enumerate((logits, ref), 10)]
    labels = torch.cat([LABELS, torch.full((B, pad), -100)], 1)
    torch.testing.assert_close(
        objectives(more[0], labels, more[1])[name], objectives(logits, LABELS, ref)[name], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_values_at_masked_positions_do_not_matter_even_if_they_are_not_numbers(name):
    logits, ref = random_logits(), random_logits(1)
    expected = objectives(logits, LABELS, ref)[name]
    untrained = ~losses.prediction_mask(LABELS)
    logits[untrained] = ref[untrained] = float("nan")
    torch.testing.assert_close(objectives(logits, LABELS, ref)[name], expected)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits, ref = random_logits(dtype=torch.bfloat16), random_logits(1, dtype=torch.bfloat16)
    loss = objectives(logits, LABELS, ref)[name]
    exact = objectives(logits.double(), LABELS, ref.double())[name]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64(name):
    assert objectives(random_logits(), LABELS, random_logits(1))[name].dtype == torch.float64


def test_rmu_keeps_the_same_rule_of_precision():
    hidden, target, mask = torch.randn(1, 4, D), torch.randn(D), torch.ones(1, 4)
    assert losses.rmu_loss(hidden.bfloat16(), target.bfloat16(), mask).dtype == torch.float32
    assert losses.rmu_loss(hidden.double(), target.double(), mask).dtype == torch.float64


def test_gradients_agree_with_finite_differences():
    logits, ref = random_logits(), random_logits(1)
    for name in NAMES:
        assert torch.autograd.gradcheck(lambda x, name=name: objectives(x, LABELS, ref)[name], logits.requires_grad_())
