# SPDX-License-Identifier: Apache-2.0
"""Representation rerouting: its two terms, their cross-fade, how it begins, and what it trains."""

import re

import pytest
import torch
from conftest import changed, lora, make_model, train_batch, weights

from hf_unlearn import METHODS, losses


Config, Trainer = METHODS["rr"]
SHORT = {"layer_ids": [0, 2], "retain_loss": "states", "learning_rate": 1e-3}


@pytest.fixture
def run(build, tmp_path):
    """Trains a model of four layers."""

    def run(given=None, resume=None, **settings):
        trainer = build(Trainer, {"model": make_model(layers=4)} | (given or {}), **(SHORT | settings))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# The terms


def states(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def test_terms_and_gradients_equal_a_slow_formula():
    h, h_ref = states(5, 2, 7)
    cosines, distances = [], []
    for token in range(5):
        for layer in range(2):
            x, y = h[token, layer], h_ref[token, layer].detach()
            cosines.append(torch.clamp(sum(x * y) / (sum(x * x).sqrt() * sum(y * y).sqrt()), min=0))
            distances.append(sum((x - y) ** 2).sqrt())
    assert 0 < sum(cosine == 0 for cosine in cosines) < 10
    for found, slow in ((losses.rerouting_loss(h, h_ref), cosines), (losses.distance_loss(h, h_ref), distances)):
        torch.testing.assert_close(found, sum(slow) / 10, rtol=1e-12, atol=0)
        own, by_hand = (torch.autograd.grad(loss, h, retain_graph=True)[0] for loss in (found, sum(slow) / 10))
        torch.testing.assert_close(own, by_hand, rtol=1e-10, atol=1e-14)
        # Of the reference there is none.
        assert torch.autograd.grad(found, h_ref, allow_unused=True)[0] is None


@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_the_cosine_of_a_multiple_is_its_sign(scale):
    h, _ = states(3, 4)
    assert losses.rerouting_loss(h * scale, h).item() == pytest.approx(max(scale, 0) / 2)


def test_without_tokens_both_terms_are_nothing():
    h, h_ref = states(0, 4)
    assert losses.rerouting_loss(h, h_ref, h_ref[:0]) == 0 == losses.distance_loss(h, h_ref)


def test_the_start_moves_what_stands_still_and_nothing_else():
    h, start = states(4, 6)
    h_ref = h.detach().clone()
    # Two of four tokens have turned.
    h_ref[2:] = h_ref[2:].flip(-1)
    gradients = {}
    for name, direction in (("plain", None), ("started", start.detach())):
        loss = losses.rerouting_loss(h, h_ref, direction)
        assert loss.item() == losses.rerouting_loss(h, h_ref).item()
        gradients[name] = torch.autograd.grad(loss, h)[0]
    assert gradients["plain"][:2].abs().max() < 1e-15
    torch.testing.assert_close(gradients["plain"][2:], gradients["started"][2:], rtol=0, atol=0)
    # A step turns the others away from the direction, and from where they were.
    moved = (h - 1e-3 * gradients["started"])[:2]
    assert (torch.cosine_similarity(moved, start[:2]) < torch.cosine_similarity(h[:2], start[:2])).all()
    assert losses.rerouting_loss(moved, h_ref[:2]) < 1
    assert gradients["started"][:2].norm(dim=-1).min() > 1e-4


def test_distance_has_no_gradient_where_nothing_moved():
    h, _ = states(3, 4)
    gradient = torch.autograd.grad(losses.distance_loss(h, h.detach()), h)[0]
    assert (gradient == 0).all()


# A run


def test_defaults_are_the_published_ones(tmp_path):
    args = Config(output_dir=str(tmp_path))
    assert (args.layer_ids, args.forget_weight, args.retain_weight) == ([10, 20], 10.0, 10.0)
    assert (args.learning_rate, args.retain_loss) == (1e-4, "states")


def test_the_weights_fade_over_a_run_that_was_interrupted(run, tmp_path):
    whole = run(max_steps=6, save_strategy="steps", save_steps=4)
    resumed = run(max_steps=6, save_strategy="steps", save_steps=4, resume=str(tmp_path / "out" / "checkpoint-4"))
    for step, (loss, cosine) in enumerate(
        zip(logged(resumed, "forget/loss"), logged(resumed, "forget/cosine"), strict=True)
    ):
        assert loss / cosine == pytest.approx(1 - step / 12, rel=1e-5)
    shares = [
        loss / distance
        for loss, distance in zip(logged(resumed, "retain/loss"), logged(resumed, "retain/distance"), strict=True)
        if distance
    ]
    assert shares == pytest.approx([step / 12 for step in range(6)][-len(shares) :], rel=1e-5)
    assert len(shares) >= 4
    assert not changed(weights(whole.model), weights(resumed.model))


def test_the_loss_has_the_weights_of_its_step(build):
    trainer = build(Trainer, {"model": make_model(layers=4)}, reference="live", **SHORT)
    with torch.no_grad():
        # What does not train, the reference shares.
        for parameter in trainer.model.model.layers[:3].parameters():
            parameter.mul_(1.3).add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trainer.state.global_step, trainer.state.max_steps = 3, 4
    batch = train_batch(trainer, range(2))
    entered, expected = make_model(layers=4), 0.0
    for role in ("forget", "retain"):
        rows = batch["role"] == trainer.role_names.index(role)
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows].bool()
        seen = []
        for model in (trainer.model.eval(), entered):
            with torch.no_grad():
                found = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            seen.append(torch.stack([found[layer + 1][mask] for layer in (0, 2)]).double())
        policy, reference = seen
        if role == "forget":
            expected += 10 * (5 / 8) * torch.cosine_similarity(policy, reference, dim=-1).clamp(min=0).mean()
        else:
            expected += 10 * (3 / 8) * (policy - reference).norm(dim=-1).mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
def test_plain_sgd_gets_away_from_the_reference(run, adapter):
    # Where a rule without Adam's division would stand still.
    trainer = run({"peft_config": lora(target_modules="all-linear")} if adapter else {}, optim="sgd", max_steps=8)
    gradients = logged(trainer, "grad_norm")
    assert 1e-2 < gradients[0] < gradients[-1]


def test_every_form_of_the_reference_gives_the_same_run(run):
    runs = {}
    for name, settings in {
        "cache": {"reference": "cache"},
        "live": {"reference": "live", "cache_frozen": False, "fused_losses": False},
    }.items():
        trainer = run(**settings)
        assert trainer.reference.name == name
        runs[name] = weights(trainer.model)
    for name, tensor in runs["cache"].items():
        torch.testing.assert_close(tensor, runs["live"][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapter", [False, True])
def test_layers_above_the_last_one_read_do_not_train(build, adapter):
    given = {"peft_config": lora(target_modules="all-linear")} if adapter else {}
    trainer = build(Trainer, {"model": make_model(layers=4)} | given, **(SHORT | {"learning_rate": 1e-2}))
    before = weights(trainer.model)
    trainer.train()
    trained = changed(before, weights(trainer.model))
    assert {int(name.split("layers.")[1].split(".")[0]) for name in trained} == {0, 1, 2}
    assert logged(trainer, "forget/cosine")[-1] < 0.9


@pytest.mark.parametrize(("rate", "moved"), [(1e-6, False), (1e-2, True)])
def test_a_run_that_turned_nothing_says_so(run, caplog, rate, moved):
    run(learning_rate=rate)
    told = re.search(r"forget/cosine was 1 and is 1 .*: the activations were hardly steered", caplog.text)
    assert (told is None) == moved


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer_ids": []}, r"layer_ids=\[\]; give at least one layer, and each once"),
        ({"layer_ids": [1, 1]}, r"layer_ids=\[1, 1\]; give at least one"),
        ({"max_forget_loss": 3.0}, "max_forget_loss watches log-likelihoods, which RR does not compute"),
        ({"use_kl_poison": True, "poison_prefix": "x"}, "use_kl_poison=True: RR keeps poisoned rows by"),
        ({"retain_loss": "nll"}, "retain_loss='nll'; allowed: 'none', 'states'"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "RR reads activations inside the model"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        Config(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer_ids": [1, 4]}, "layer_ids=4; the model has 4 layers: give 0 to 3"),
        ({"trainable_modules": ["lm_head"]}, "lm_head.weight cannot change the output of layer_ids=2"),
    ],
)
def test_models_that_do_not_fit_are_refused(build, settings, expected):
    with pytest.raises(ValueError, match=expected):
        build(Trainer, {"model": make_model(layers=4)}, **(SHORT | settings))
