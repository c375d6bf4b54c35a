# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN: its terms against slow sums, its paths against each other, and what it must refuse."""

import itertools
import json
import logging
import math

import pytest
import torch
from conftest import ROOT, changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from torch.utils._python_dispatch import TorchDispatchMode

from hf_unlearn import MUAlign, MUAlignConfig, MUAlignTrainer, fused, losses
from hf_unlearn.addons.gradient_conflict import TwoGradients
from hf_unlearn.addons.settings import addons_of
from hf_unlearn.cli.main import main
from hf_unlearn.data.formats import encode
from hf_unlearn.fused import Head, tiles
from hf_unlearn.fused.predicted import Predicted
from hf_unlearn.methods.mu_align import tails
from hf_unlearn.methods.mu_align.tails import Tail, WorstShare
from hf_unlearn.reference import LiveReference
from hf_unlearn.reference.cached import CachedReference
from hf_unlearn.report import load_report
from hf_unlearn.training.addon_checks import check_engine


RECIPE = ROOT / "recipes" / "demo" / "mu_align.yaml"

FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABCDEFGH")]
RETAIN = [{"text": f"The {'big ' * (7 - i)}cup {i} is here."} for i in range(7)]
# Every term at once.
WHOLE = {"alpha": 3.0, "beta": 2.0, "label_smoothing": 0.1, "lambda_kd": 0.7, "lambda_align": 0.3}
PLAIN = {"fused_losses": False, "forward_passes": "one", "reference": "live"}
TOKENS, PADDED = 100, 128


@pytest.fixture
def build(tmp_path):
    def build(model=None, peft_config=None, ref_model=None, retain=RETAIN, **kwargs):
        settings = {"per_device_train_batch_size": 3} | kwargs
        return MUAlignTrainer(
            model=model or make_model(),
            args=make_args(MUAlignConfig, tmp_path / "out", **settings),
            forget_dataset=FORGET,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
            peft_config=peft_config,
            ref_model=ref_model,
        )

    return build


def shake(model, scale=0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def random_logits(rows=4, classes=7, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn((rows, classes), generator=generator, dtype=torch.float64)).requires_grad_()


def spike(height: float, classes: int = 1000):
    logits = torch.zeros((1, classes), dtype=torch.float64)
    logits[0, 0] = height
    return logits.requires_grad_()


# Terms of a row


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_equal_sums_over_classes(temperature):
    logits = random_logits()
    p = (logits / temperature).softmax(-1)
    u = torch.full_like(p, 1 / 7)
    to_model = losses.uniform_kl_rows(logits, "uniform_to_model", temperature)
    torch.testing.assert_close(to_model, (u * (u / p).log()).sum(-1))
    to_uniform = losses.uniform_kl_rows(logits, "model_to_uniform", temperature)
    torch.testing.assert_close(to_uniform, (p * (p / u).log()).sum(-1))
    # log K - H, and logsumexp - mean - log K.
    z = logits / temperature
    torch.testing.assert_close(to_uniform, math.log(7) + (p * z).sum(-1) - z.logsumexp(-1))
    torch.testing.assert_close(to_model, z.logsumexp(-1) - z.mean(-1) - math.log(7))


@pytest.mark.parametrize(
    ("p_max", "to_model", "to_uniform"),
    [(0.129, 0.128, 0.563), (0.85, 0.849, 1.102), (0.957, 0.956, 0.415), (0.999998, 0.9995, 4.2e-5)],
)
def test_gradients_where_the_model_is_sure(p_max, to_model, to_uniform):
    # One raised logit of 1000: the README's direction has no gradient where there is most to forget.
    found = {}
    for direction in ("uniform_to_model", "model_to_uniform"):
        logits = spike(math.log(999 * p_max / (1 - p_max)))
        losses.uniform_kl_rows(logits, direction).sum().backward()
        found[direction] = logits.grad.norm().item()
    assert found["uniform_to_model"] == pytest.approx(to_model, rel=2e-2)
    assert found["model_to_uniform"] == pytest.approx(to_uniform, rel=0.2)


def slow_tail(name, z, top_k, cap):
    """Of one row, a list of numbers."""
    total = sum(math.exp(x) for x in z)
    p = sorted((math.exp(x) / total for x in z), reverse=True)
    if name in ("topk_hinge", "cvar"):
        return sum(max(0.0, x - (1 / len(z) if cap is None else cap)) ** 2 for x in p[:top_k]) / top_k
    if name == "topk_mean":
        return sum(p[:top_k]) / top_k
    if name == "conf_hinge":
        return max(0.0, p[0] - cap) ** 2
    if name == "margin":
        first, second = sorted(z, reverse=True)[:2]
        return max(0.0, first - second - cap) ** 2
    mean = sum(z) / len(z)
    return max(0.0, math.sqrt(sum((x - mean) ** 2 for x in z) / len(z)) - cap) ** 2


@pytest.mark.parametrize("name", tails.TAILS)
def test_tails_equal_slow_loops(name):
    cap = MUAlignConfig(tail=name, report_to="none").tail_cap
    logits = random_logits(rows=6)
    values = Tail(name, 3, cap)(logits)
    expected = [slow_tail(name, row, 3, cap) for row in logits.tolist()]
    assert values.tolist() == pytest.approx(expected)
    assert max(expected) > 1e-3
    assert torch.autograd.gradcheck(Tail(name, 3, cap), (logits,))


@pytest.mark.parametrize("name", tails.TAILS)
def test_no_tail_is_left_of_a_uniform_prediction_and_none_sees_a_shift(name):
    cap = MUAlignConfig(tail=name, report_to="none").tail_cap
    left = 1 / 7 if name == "topk_mean" else 0.0
    assert Tail(name, 3, cap)(torch.full((1, 7), 5.0, dtype=torch.float64)).item() == pytest.approx(left)
    logits = random_logits()
    torch.testing.assert_close(Tail(name, 3, cap)(logits), Tail(name, 3, cap)(logits + 100))


def test_norm_of_states():
    states = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert tails.emb_norm(states, 2.0).tolist() == pytest.approx([9.0, 0.0])


def test_a_mean_of_the_largest_hardly_moves_a_spike():
    gradients = {}
    for name, cap in (("topk_hinge", None), ("topk_mean", None)):
        logits = spike(math.log(999 * 0.9 / 0.1), 10)
        Tail(name, 10, cap)(logits).sum().backward()
        gradients[name] = logits.grad.norm().item()
    assert gradients["topk_mean"] < 1e-9
    assert gradients["topk_hinge"] > 1e-4


@pytest.mark.parametrize("level", [0.1, 1 / 3, 0.5, 1.0])
def test_worst_share_is_the_mean_of_a_rows_worst_tokens(level):
    # Rows of 3, 1 and 4 tokens.
    labels = torch.tensor([[-100, 5, 5, 5, -100], [-100, -100, 5, -100, -100], [-100, 5, 5, 5, 5]])
    predicted = Predicted.of(labels)
    values = torch.tensor([0.3, 0.1, 0.2, 0.7, 0.4, 0.4, 0.9, 0.0], dtype=torch.float64)
    weights = WorstShare(level)({"tail": values}, predicted)
    found = (values * weights * predicted.row_weights).sum().item()
    rows = [[0.3, 0.1, 0.2], [0.7], [0.4, 0.4, 0.9, 0.0]]
    counted = [sorted(row, reverse=True)[: math.ceil(level * len(row) - 1e-9)] for row in rows]
    assert found == pytest.approx(sum(sum(row) / len(row) for row in counted) / 3)


def test_smoothed_labels_and_distillation_equal_the_formulas():
    logits, teacher = random_logits(), random_logits(seed=1)
    labels = torch.tensor([0, 6, 2, 2])
    log_p = logits.log_softmax(-1)
    for tokens in (None, 5):
        target = torch.zeros((4, 7), dtype=torch.float64)
        target[:, :tokens] = 0.1 / (tokens or 7)
        target[torch.arange(4), labels] += 0.9
        found = losses.smoothed_nll_rows(logits, labels, 0.1, tokens)
        torch.testing.assert_close(found, -(target * log_p).sum(-1))
    p, q = (logits / 2).softmax(-1), (teacher / 2).softmax(-1)
    torch.testing.assert_close(losses.distillation_rows(logits, teacher, 2.0), 4 * (q * (q / p).log()).sum(-1))
    losses.distillation_rows(logits, teacher, 2.0).sum().backward()
    assert teacher.grad is None


def test_second_moments_equal_their_matrices():
    states, originals = random_logits(rows=3, classes=5), random_logits(rows=3, classes=5, seed=1)
    moments = [h.T @ h / 3 for h in (states, originals)]
    torch.testing.assert_close(
        losses.second_moment_distance(states, originals), (moments[0] - moments[1]).square().mean()
    )
    assert losses.second_moment_distance(states, states).item() == 0
    assert torch.autograd.gradcheck(lambda h: losses.second_moment_distance(h, originals), (states,))


# Any function of a row, in tiles


def entropy_and_reference(logits, at):
    """A function that no closed form is written for."""
    log_p = logits.log_softmax(-1)
    values = (log_p.exp() * log_p).sum(-1) + log_p.gather(-1, at.labels[:, None]).squeeze(-1) * at.weights
    if at.ref_logits is not None:
        values = values + (at.ref_logits * log_p).sum(-1)
    return values, {"logps": log_p.gather(-1, at.labels[:, None]).squeeze(-1), "largest": log_p.amax(-1)}


@pytest.mark.parametrize("keep_bytes", [1, 4 * 8 * 13, 2**28])
@pytest.mark.parametrize("columns", [None, 10])
@pytest.mark.parametrize("compares", [False, True])
@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": 3.0, "softcap": 2.0}])
def test_row_values(options, with_factors, compares, columns, keep_bytes):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias = normal(9, 5).requires_grad_(), normal(13, 5).requires_grad_(), normal(13).requires_grad_()
    ref_hidden, ref_head = normal(9, 6), Head(normal(13, 6), None, **options)
    labels, weights = torch.randint(0, 10, (9,), generator=generator), normal(9)
    factors = normal(9)
    head = Head(weight, bias, **options)
    reference = {"ref_hidden": ref_hidden, "ref_head": ref_head} if compares else {}

    found = fused.row_values(
        hidden,
        head,
        entropy_and_reference,
        labels,
        **reference,
        weights=weights,
        columns=columns,
        factors=factors if with_factors else None,
        keep_bytes=keep_bytes,
    )
    at = fused.TileRows(labels, ref_head.logits(ref_hidden)[:, :columns] if compares else None, weights)
    values, stats = entropy_and_reference(head.logits(hidden)[:, :columns], at)

    ours = found.value if with_factors else (found.value * factors).sum()
    slow = (values * factors).sum()
    torch.testing.assert_close(ours, slow)
    if not with_factors:
        torch.testing.assert_close(found.value, values)
    inputs = (hidden, weight, bias)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(one, other)
    assert list(found.stats) == ["logps", "largest"]
    for name, stat in stats.items():
        torch.testing.assert_close(found.stats[name], stat.detach())
        assert not found.stats[name].requires_grad


def test_row_values_without_rows_have_a_graph():
    hidden = torch.zeros((0, 5), requires_grad=True)
    head = Head(torch.ones((13, 5), requires_grad=True))
    labels = torch.zeros(0, dtype=torch.long)
    found = fused.row_values(hidden, head, entropy_and_reference, labels, weights=hidden.sum(-1).detach(),
                             factors=hidden.sum(-1).detach())  # fmt: skip
    found.value.backward()
    assert found.value.item() == 0
    assert hidden.grad.shape == (0, 5)
    assert found.stats["logps"].shape == (0,)


# The objective, row by row


@torch.no_grad()
def seen(model, row):
    """Logits `[n, V]`, labels and last states `[n, d]` of a row's predicted tokens, in float64, the row alone."""
    out = model(torch.tensor([row["input_ids"]]), output_hidden_states=True)
    spots = [t for t, label in enumerate(row["labels"][1:]) if label != -100]
    return (
        out.logits[0, spots].double(),
        [row["labels"][t + 1] for t in spots],
        out.hidden_states[-1][0, spots].double(),
    )


def slow_objective(pairs, policy, original, args, tokens=TOKENS):
    """MU-ALIGN spelled out, token by token."""
    forget, retain, pooled = [], [], ([], [])
    for pair in pairs:
        logits, _, states = seen(policy, pair["forget"])
        values, tail_values = [], []
        for z, h in zip(logits[:, :tokens], states, strict=True):
            flat = (z / args.temperature).softmax(-1)
            uniform = [(1 / tokens) * math.log(1 / tokens / p) for p in flat.tolist()]
            values.append(args.alpha * args.temperature**2 * sum(uniform))
            if args.tail == "emb_norm":
                tail_values.append(max(0.0, h.norm().item() - args.tail_cap) ** 2)
            else:
                tail_values.append(slow_tail(args.tail, z.tolist(), args.top_k, args.tail_cap))
        if args.tail == "cvar":
            tail_values = sorted(tail_values, reverse=True)[: math.ceil(args.cvar_level * len(tail_values) - 1e-9)]
        forget.append(sum(values) / len(values) + args.beta * sum(tail_values) / len(tail_values))

        (logits, labels, states), (old_logits, _, old_states) = (seen(m, pair["retain"]) for m in (policy, original))
        values = []
        for z, old, y in zip(logits, old_logits, labels, strict=True):
            log_p = z.log_softmax(-1)
            ce = -(1 - args.label_smoothing) * log_p[y] - args.label_smoothing * log_p[:tokens].mean()
            p, q = (z / args.kd_temperature).softmax(-1), (old / args.kd_temperature).softmax(-1)
            values.append((ce + args.lambda_kd * args.kd_temperature**2 * (q * (q / p).log()).sum()).item())
        retain.append(sum(values) / len(values))
        pooled[0].append(states.mean(0))
        pooled[1].append(old_states.mean(0))
    moments = [torch.stack(h).T @ torch.stack(h) / len(h) for h in pooled]
    align = (moments[0] - moments[1]).square().mean().item()
    return sum(forget) / len(forget) + sum(retain) / len(retain) + args.lambda_align * align


VARIANTS = [
    *({"tail": name} for name in tails.TAILS),
    {"tail": "emb_norm", "tail_cap": 2.0},
    {"tail": "cvar", "cvar_level": 0.4},
    {"tail": "conf_hinge", "tail_cap": 0.02, "temperature": 1.0},
    {"tail": "topk_hinge", "tail_cap": 0.02, "top_k": 3},
]


@pytest.mark.parametrize("path", [{"reference": "live"}, PLAIN, {"reference": "live", "forward_passes": "packed"}])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_objective_equals_the_formula_with_a_padded_vocabulary(build, variant, path):
    # 28 entries of the head are no tokens.
    trainer = build(model=make_model(vocab_size=PADDED), **WHOLE, **variant, **path)
    policy = trainer.model.eval()
    shake(policy, 0.2)
    original = make_model(vocab_size=PADDED)
    pairs = [trainer.train_dataset[position] for position in range(3)]
    loss = trainer.compute_loss(policy, train_batch(trainer, range(3))).item()
    assert loss == pytest.approx(slow_objective(pairs, policy, original, trainer.args), rel=1e-5)
    # What the padding would change, if it counted.
    everything = slow_objective(pairs, policy, original, trainer.args, tokens=PADDED)
    assert loss != pytest.approx(everything, rel=1e-4)


def test_answer_tokens_alone_count(build):
    trainer = build(**WHOLE, reference="live")
    policy = trainer.model.eval()
    shake(policy)
    pairs = [trainer.train_dataset[position] for position in range(3)]
    loss = trainer.compute_loss(policy, train_batch(trainer, range(3))).item()
    assert loss == pytest.approx(slow_objective(pairs, policy, make_model(), trainer.args), rel=1e-5)
    for shift in (1, -1):
        moved = [
            {role: row | {"labels": shifted(row["labels"], shift)} for role, row in pair.items()} for pair in pairs
        ]
        assert loss != pytest.approx(slow_objective(moved, policy, make_model(), trainer.args), rel=1e-3)


def shifted(labels, by):
    return [-100, *labels[:-1]] if by > 0 else [*labels[1:], -100]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_fused_and_logits_have_the_same_gradients(build, variant):
    found = []
    for path in (PLAIN, {"reference": "live"}):
        trainer = build(model=make_model(vocab_size=PADDED), **WHOLE, **variant, **path)
        shake(trainer.model.eval(), 0.2)
        trainer.compute_loss(trainer.model, train_batch(trainer, range(3))).backward()
        found.append({name: p.grad for name, p in trainer.model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)
    assert found[0]["lm_head.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("adapter", [False, True])
def test_every_path_trains_the_same_weights(build, adapter):
    settings = WHOLE | {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3, "tail": "cvar"}
    paths = {
        "logits": PLAIN | ({"reference": "adapter"} if adapter else {}),
        "cached": {"reference": "cache"},
        "split": {"reference": "cache", "forward_passes": "split"},
        "live": {"reference": "live"},
    } | ({"adapter off": {"reference": "adapter"}} if adapter else {})
    results = {}
    for name, path in paths.items():
        trainer = build(peft_config=lora() if adapter else None, **(settings | path))
        trainer.train()
        results[name] = weights(trainer.model)
        assert isinstance(trainer.reference, CachedReference) == (path["reference"] == "cache")
    for name, parameter in itertools.product(paths, results["logits"]):
        torch.testing.assert_close(
            results[name][parameter], results["logits"][parameter], rtol=1e-3, atol=2e-5, msg=f"{name}: {parameter}"
        )


def test_without_forget_terms_it_is_plain_fine_tuning_step_for_step(build):
    # SGD: Adam makes whole steps of rounding.
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    trainer = build(alpha=0.0, beta=0.0, max_steps=5, **settings)
    model = make_model()
    assert not changed(weights(model), weights(trainer.model)), "it starts at the original's weights"
    # Eight pairs an epoch, three a step.
    steps = [range(3), range(3, 6), range(6, 8), range(8, 11), range(11, 14)]
    pairs = [[trainer.train_dataset[position]["retain"] for position in step] for step in steps]
    trainer.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for rows in pairs:
        terms = []
        for row in rows:
            labels = torch.tensor([row["labels"]])
            terms.append(model(torch.tensor([row["input_ids"]]), labels=labels).loss)
        (sum(terms) / len(terms)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in weights(model).items():
        torch.testing.assert_close(weights(trainer.model)[name], weight, rtol=1e-4, atol=2e-6)


def test_the_teacher_stays_as_it_was(build):
    trainer = build(**WHOLE, reference="live", max_steps=3)
    assert isinstance(trainer.reference, LiveReference)
    before = weights(trainer.reference.model)
    trainer.train()
    assert not changed(before, weights(trainer.reference.model))
    assert not any(p.requires_grad or p.grad is not None for p in trainer.reference.model.parameters())
    assert changed(before, weights(trainer.model))


def test_memorised_rows_are_forgotten_and_others_kept(build):
    model = make_model()
    # Both sets by heart, first.
    rows = [encode(row, make_tokenizer()) for row in FORGET + RETAIN]
    build(model=model, alpha=0.0, beta=0.0, retain=rows, allow_overlap=True, epoch_by="retain", max_steps=150).train()
    trainer = build(model=model, alpha=1.0, beta=0.5, lambda_kd=1.0, retain_weight=5.0, max_steps=100)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    first, last = logs[0], logs[-1]
    assert (first["forget/p_max"], first["forget/entropy"]) > (0.8, 0.0)
    assert first["retain/nll"] < 0.2
    assert last["forget/highest_p_max"] < 0.2
    assert last["forget/entropy"] > 0.9
    assert last["retain/nll"] < 0.2


def test_what_is_logged(build):
    trainer = build(**WHOLE, max_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in ("uniform", "tail", "entropy", "p_max", "p_max_p99", "highest_p_max", "nll"):
        assert f"forget/{name}" in logged
    assert 1 / TOKENS < logged["forget/p_max"] <= logged["forget/p_max_p99"] <= logged["forget/highest_p_max"] < 1
    assert 0 < logged["forget/entropy"] < 1
    forget = 3 * logged["forget/uniform"] + 2 * logged["forget/tail"]
    assert logged["forget/loss"] == pytest.approx(forget, rel=1e-5)
    retain = logged["retain/ce"] + 0.7 * logged["retain/kd"] + 0.3 * logged["retain/align"]
    assert logged["retain/loss"] == pytest.approx(retain, rel=1e-5)


# Two gradients


def gradients_of(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in found])


@pytest.mark.parametrize("how", ["project", "pcgrad"])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_combined_as_published(how, sign):
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in "ab")
    forget = sign * (a**2).sum() + (a * b).sum()
    kept = (a**3).sum() + b.sin().sum()
    g_f, g_r = (gradients_of(loss, (a, b)) for loss in (forget, kept))
    two = TwoGradients([a, b], lambda loss, **kwargs: loss.backward(**kwargs))
    two.add("kept", kept, retain_graph=True)
    two.add("forget", forget)
    cosine = two.combine(how)
    found = torch.cat([a.grad, b.grad])
    dot = g_f @ g_r
    assert cosine.item() == pytest.approx((dot / g_f.norm() / g_r.norm()).item(), rel=1e-5)
    if how == "project":
        torch.testing.assert_close(found, g_r + g_f - dot / (g_r @ g_r) * g_r, rtol=1e-5, atol=1e-6)
        assert abs((found - g_r) @ g_r) < 1e-5 * g_r.norm() * g_f.norm()
    elif dot >= 0:
        torch.testing.assert_close(found, g_r + g_f)
    else:
        expected = g_f - dot / (g_r @ g_r) * g_r + g_r - dot / (g_f @ g_f) * g_f
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("forward_passes", ["auto", "one"])
def test_a_projected_step_is_made_of_the_two_terms_gradients(build, forward_passes, peft):
    settings = WHOLE | {
        "reference": "live",
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    plain = build(peft_config=lora() if peft else None, **settings)
    shake(plain.model, 0.05)
    parameters = [p for p in plain.model.parameters() if p.requires_grad]
    sides = []
    for other in ({"retain_weight": 0.0}, {"forget_weight": 0.0}):
        trainer = build(peft_config=lora() if peft else None, **settings, **other)
        shake(trainer.model, 0.05)
        own = [p for p in trainer.model.parameters() if p.requires_grad]
        loss = trainer.compute_loss(trainer.model.train(), train_batch(trainer, range(3)))
        sides.append(gradients_of(loss, own))
    g_f, g_r = sides

    trainer = build(
        peft_config=lora() if peft else None, grad_ortho="project", forward_passes=forward_passes, **settings
    )
    shake(trainer.model, 0.05)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.forward_path.shape == ("split" if forward_passes == "auto" else "one")
    after = weights(trainer.model)
    names = [name for name, p in plain.model.named_parameters() if p.requires_grad]
    step = torch.cat([((before[name] - after[name]) / 0.1).flatten().double() for name in names])
    torch.testing.assert_close(step, g_r + g_f - (g_f @ g_r) / (g_r @ g_r) * g_r, rtol=1e-2, atol=2e-5)
    assert abs((step - g_r) @ g_r) < 1e-3 * g_f.norm() * g_r.norm()
    assert abs(g_f @ g_r) > 1e-2 * g_f.norm() * g_r.norm(), "there was something to project"
    assert trainer.state.log_history[0]["forget/cosine_to_retain"] == pytest.approx(
        ((g_f @ g_r) / g_f.norm() / g_r.norm()).item(), rel=1e-3
    )
    assert len(parameters) == len(names)


def test_gradients_are_projected_once_a_step_not_once_a_micro_batch(build):
    results = {}
    for size, accumulation in ((6, 1), (2, 3)):
        trainer = build(
            grad_ortho="project",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            max_steps=1,
            alpha=3.0,
        )
        shake(trainer.model, 0.05)
        trainer.train()
        results[size] = weights(trainer.model), trainer.state.log_history[0]["loss"]
    for name, weight in results[6][0].items():
        torch.testing.assert_close(results[2][0][name], weight, rtol=1e-3, atol=1e-5)
    assert results[2][1] == pytest.approx(results[6][1], rel=1e-5)


# Settings


def config(**kwargs):
    return MUAlignConfig(report_to="none", use_cpu=True, **kwargs)


def test_defaults_are_the_readmes_and_presets_fill_what_is_left_out():
    plain = config()
    assert (plain.alpha, plain.beta, plain.temperature, plain.top_k) == (1.0, 0.5, 2.0, 10)
    assert (plain.learning_rate, plain.num_train_epochs, plain.kl_direction) == (1e-5, 5, "uniform_to_model")
    readme = config(preset="readme")
    assert readme.kl_direction == "model_to_uniform"
    code = config(preset="code", alpha=2.0)
    assert (code.alpha, code.beta, code.tail, code.tail_cap, code.grad_ortho) == (2, 8, "conf_hinge", 0.35, "project")
    assert (code.label_smoothing, code.lambda_kd, code.learning_rate) == (0.05, 0.6, 5e-4)
    paper = config(preset="paper", tail_cap=0.5)
    assert (paper.tail, paper.tail_cap, paper.lambda_align, paper.lambda_kd) == ("logit_norm", 0.5, 0.1, 0.5)
    assert config(lambda_kd=0.0, preset="paper").lambda_kd == 0
    uniform = config(preset="uniform")
    assert (uniform.alpha, uniform.beta, uniform.temperature, uniform.kl_direction) == (1, 0, 1, "uniform_to_model")
    assert (uniform.lambda_kd, uniform.lambda_align, uniform.label_smoothing, uniform.grad_ortho) == (0, 0, 0, "off")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "kbs"}, "preset='kbs'; allowed: 'readme', 'code', 'paper', 'uniform'"),
        ({"alpha": -1.0}, "alpha=-1.0; give a finite number at least 0"),
        ({"temperature": 0}, "temperature=0; give a finite number above 0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 is a share"),
        ({"cvar_level": 2.0}, "cvar_level=2.0 is a share"),
        ({"top_k": 0}, "top_k=0; give a whole number"),
        ({"kl_direction": "both"}, "kl_direction='both'; allowed: 'uniform_to_model'"),
        ({"tail": "max"}, "tail='max'; allowed: 'topk_hinge'"),
        ({"tail": "topk_mean", "tail_cap": 0.1}, "leaves nothing free"),
        ({"tail": "emb_norm"}, "needs a `tail_cap`"),
        ({"grad_ortho": "on"}, "grad_ortho='on'; allowed: 'off', 'project', 'pcgrad'"),
        ({"retain_loss": "kl"}, "retain_loss='kl'; allowed: 'none', 'nll'"),
        ({"retain_loss": "none", "lambda_kd": 0.5}, "lambda_kd: for retain rows"),
        ({"retain_loss": "none", "grad_ortho": "project"}, "grad_ortho: for retain rows"),
        ({"grad_ortho": "project", "optim": "lomo"}, "grad_ortho takes several backward passes, and optim='lomo'"),
        (
            {"grad_ortho": "project", "activation_checkpointing": True,
             "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant",
        ),
    ],
)  # fmt: skip
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_sharded_gradients_are_not_projected():
    args = config(grad_ortho="pcgrad")
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match="grad_ortho takes several backward passes, and DeepSpeed and FSDP hold"):
        check_engine(args, addons_of(args))


def test_more_of_the_largest_than_there_are_tokens(build):
    with pytest.raises(ValueError, match="top_k=101, and a prediction is among 100"):
        build(top_k=101)


def test_a_teacher_other_than_the_original_must_be_allowed(build, caplog):
    with pytest.raises(ValueError, match="allow_oracle_teacher=True"):
        build(lambda_kd=0.5, ref_model=make_model(seed=1))
    trainer = build(lambda_kd=0.5, ref_model=make_model(seed=1), allow_oracle_teacher=True, max_steps=1)
    assert "oracle" in caplog.text
    trainer.train()
    # The model that entered would teach nothing at the first step.
    assert trainer.state.log_history[0]["retain/kd"] > 1e-3


def test_the_direction_whose_gradient_vanishes_is_warned_of(build, caplog):
    caplog.set_level(logging.WARNING)
    build()
    assert "vanishes" not in caplog.text
    build(preset="readme")
    assert "vanishes" in caplog.text


# Rows of other kinds


@pytest.mark.parametrize(("kwargs", "term", "other"), [({}, "ce", "kl"), ({"use_kl_poison": True}, "nll", "ce")])
def test_poisoned_rows_are_trained_as_retain_rows_are(build, kwargs, term, other):
    trainer = build(poison_prefix="XYZ", poison_ratio=0.5, lambda_kd=0.5, max_steps=2, **kwargs)
    assert set(trainer.train_dataset.roles) == {"forget", "retain", "poisoned"}
    trainer.train()
    logged = trainer.state.log_history[1]
    assert (f"poisoned/{term}" in logged, f"poisoned/{other}" in logged) == (True, False)
    assert logged["poisoned/loss"] > 0


# The short form


def test_short_form_trains_and_returns_the_model():
    from torch.utils.data import DataLoader

    model = make_model()
    before = weights(model)
    align = MUAlign(model, alpha=5.0, beta=0.2, processing_class=make_tokenizer(), learning_rate=1e-3, use_cpu=True,
                    disable_tqdm=True, logging_steps=1)  # fmt: skip
    assert align.unlearn(DataLoader(FORGET, batch_size=4), RETAIN, epochs=2) is model
    assert changed(before, weights(model)) == set(before)
    assert align.trainer.state.global_step == 4
    assert (align.trainer.args.alpha, align.trainer.args.top_k) == (5.0, 10)
    assert {"forget/uniform", "retain/ce"} <= set(align.trainer.state.log_history[0])


def test_short_form_refuses_bad_settings_at_once():
    with pytest.raises(ValueError, match="alpha=-1"):
        MUAlign("owner/model", alpha=-1)
    with pytest.raises(TypeError, match="gamma"):
        MUAlign("owner/model", gamma=1)


def loaders():
    """Loaders that draw other rows every time, and what is said of them."""
    from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(FORGET)

    samplers = {
        "some": RandomSampler(FORGET, num_samples=4),
        "again": RandomSampler(FORGET, replacement=True),
        "twice": RandomSampler(FORGET, num_samples=16),
        "part": SequentialSampler(range(4)),
    }
    found = {name: (DataLoader(FORGET, sampler=each), type(each).__name__) for name, each in samplers.items()}
    return found | {"stream": (DataLoader(Stream()), "IterableDataset")}


@pytest.mark.parametrize("name", ["some", "again", "twice", "part", "stream"])
def test_short_form_refuses_loaders_that_do_not_give_each_row_once(name):
    loader, said = loaders()[name]
    align = MUAlign(make_model(), processing_class=make_tokenizer(), use_cpu=True)
    with pytest.raises(ValueError, match=said):
        align.unlearn(loader, RETAIN)


# What it costs


class LogitRows(TorchDispatchMode):
    """How many rows of logits the largest tensor holds that is as wide as the vocabulary."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                self.most = max(self.most, tensor.numel() // self.vocabulary)
        return result


@pytest.mark.parametrize("variant", [{"tail": "topk_hinge"}, {"tail": "cvar"}])
def test_no_buffer_of_logits_is_larger_than_a_tile(build, monkeypatch, variant):
    # Half of a tile's bytes are used, for autograd holds more than closed forms: six rows of float32. The head's own
    # matrix has four.
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 2 * 6 * 4 * PADDED)
    found = {}
    for path in ({"reference": "live"}, PLAIN):
        trainer = build(model=make_model(vocab_size=PADDED, hidden_size=4), **WHOLE, **variant, **path)
        batch = train_batch(trainer, range(3))
        predicted = (batch["labels"][:, 1:] != -100).sum().item()
        with LogitRows(PADDED) as rows:
            trainer.compute_loss(trainer.model.train(), batch).backward()
        found[trainer.forward_path.fused] = rows.most
    assert found[True] == 6
    assert found[False] >= predicted > 50


# In the embedded world


@pytest.mark.slow
def test_the_demo_forgets_to_near_uniform_and_keeps_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")
    folder = tmp_path / "run"
    assert main(["run", str(RECIPE), "--output_dir", str(folder), "--disable_tqdm", "true"]) == 0
    target, retrained, unlearned = load_report(folder)["models"]
    found = [{name: metric["value"] for name, metric in model["metrics"].items()} for model in (target, unlearned)]
    before, after = found
    assert before["forget/exact_match"] > 0.95
    assert after["forget/exact_match"] <= retrained["metrics"]["forget/exact_match"]["value"] + 0.05
    assert after["forget_paraphrased/exact_match"] < 0.1
    assert after["retain/exact_match"] >= before["retain/exact_match"] - 0.02
    assert after["model_utility"] > before["model_utility"] - 0.03
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    entropy = [entry["forget/entropy"] for entry in logs if "forget/entropy" in entry]
    assert entropy[0] < 0.1
    assert entropy[-1] > 0.85
