# SPDX-License-Identifier: Apache-2.0
"""Clip, noise and shrink of what MU-ALIGN's head reads of forget rows: in training alone."""

import math

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import MUAlignConfig, MUAlignTrainer
from hf_unlearn.methods.mu_align.noise import ForgetNoise


FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABCDEFGH")]
RETAIN = [{"text": f"The {'big ' * (7 - i)}cup {i} is here."} for i in range(7)]
PATHS = {
    "fused": {"reference": "live"},
    "split": {"reference": "live", "forward_passes": "split"},
    "packed": {"reference": "live", "forward_passes": "packed"},
    "plain": {"reference": "live", "fused_losses": False},
}
# States of the tiny models have norms of 3 to 6 (after a normalisation of 32 entries) and about 2 (16 of a tanh).
CLIP = {"forget_clip": 1.5}


@pytest.fixture
def build(tmp_path):
    def build(model=None, name="out", forget=FORGET, retain=RETAIN, peft_config=None, **kwargs):
        vilt = model is not None
        return MUAlignTrainer(
            model=model or make_model(),
            args=make_args(MUAlignConfig, tmp_path / name, **{"per_device_train_batch_size": 3, "top_k": 3} | kwargs),
            forget_dataset=forget,
            retain_dataset=retain,
            eval_dataset={"forget": forget},
            processing_class=make_processor() if vilt else make_tokenizer(),
            peft_config=peft_config,
        )

    return build


def loss_and_gradients(trainer, seed=0):
    torch.manual_seed(seed)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model.train(), train_batch(trainer, range(3)))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


# The function


def test_the_three_by_hand():
    forget = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    retain = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    states = {"forget": forget, "retain": retain}
    found = ForgetNoise(clip=1.0, noise=0.0, shrink=0.0)(states)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64))
    # A quarter of the way to (2, 1).
    found = ForgetNoise(None, 0.0, 0.25)(states)
    torch.testing.assert_close(found, torch.tensor([[2.75, 3.25], [0.725, 0.55], [0.5, 0.25]], dtype=torch.float64))
    found.square().sum().backward()
    assert retain.grad is None
    torch.testing.assert_close(forget.grad, 0.75 * 2 * found.detach())
    # In this order: the noise is not clipped, and what is clipped is what was moved.
    torch.manual_seed(5)
    noise = torch.randn((3, 2), dtype=torch.float64)
    torch.manual_seed(5)
    found = ForgetNoise(1.0, 0.5, 0.25)(states)
    moved = torch.tensor([[2.75, 3.25], [0.725, 0.55], [0.5, 0.25]], dtype=torch.float64)
    norms = torch.tensor([math.hypot(*row) for row in moved.tolist()])[:, None]
    torch.testing.assert_close(found, torch.where(norms > 1, moved / norms, moved) + 0.5 * noise)


def test_the_gradient_of_a_state_of_length_0_is_finite():
    forget = torch.zeros((1, 4), requires_grad=True)
    ForgetNoise(2.0, 0.1, 0.0)({"forget": forget}).sum().backward()
    assert torch.equal(forget.grad, torch.ones(1, 4))


def test_without_retain_tokens_nothing_is_moved():
    forget = torch.ones((2, 4))
    found = ForgetNoise(None, 0.0, 0.5)({"forget": forget, "retain": torch.ones((0, 4))})
    assert torch.equal(found, forget)


# Language models


@torch.no_grad()
def last_states(model, row):
    """What the head reads at a row's predicted tokens, in float64, the row alone."""
    states = model(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[-1][0].double()
    return states[[t for t, label in enumerate(row["labels"][1:]) if label != -100]]


def sure(trainer):
    """With predictions far enough from uniform for a divergence above rounding."""
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(20)
    return trainer


@pytest.mark.parametrize("path", ["fused", "packed", "plain"])
@pytest.mark.parametrize("settings", [CLIP, {"forget_shrink": 0.4}, {"forget_shrink": 0.4, **CLIP}], ids=str)
def test_the_objective_of_a_language_model_is_of_changed_states(build, path, settings):
    trainer = sure(build(**settings, **PATHS[path], alpha=2.0, beta=0.0, lambda_kd=0.5, tail="conf_hinge"))
    pairs = [trainer.train_dataset[position] for position in range(3)]
    head = trainer.model.lm_head.weight.detach().double()
    centre = torch.cat([last_states(trainer.model, pair["retain"]) for pair in pairs]).mean(0)
    rows = []
    for pair in pairs:
        states = last_states(trainer.model, pair["forget"])
        states = states + settings.get("forget_shrink", 0) * (centre - states)
        norms = states.norm(dim=-1, keepdim=True)
        assert (norms > CLIP["forget_clip"]).any()
        if "forget_clip" in settings:
            states = torch.where(norms > 1.5, 1.5 * states / norms, states)
        flat = (states @ head.T / 2).softmax(-1)
        rows.append((4 * -(len(head) * flat).log().mean(-1)).mean())
    trainer.compute_loss(trainer.model.train(), train_batch(trainer, range(3)))
    found = trainer.meters.reduce(trainer.accelerator)
    assert found["forget/loss"] == pytest.approx((2 * sum(rows) / 3).item(), rel=1e-5)
    # Retain rows and the teacher are as they are.
    untouched = sure(build(**PATHS[path], lambda_kd=0.5))
    untouched.compute_loss(untouched.model.train(), train_batch(untouched, range(3)))
    assert found["retain/loss"] == pytest.approx(untouched.meters.reduce(untouched.accelerator)["retain/loss"])


@pytest.mark.parametrize("tail", [{"tail": "cvar"}, {"tail": "emb_norm", "tail_cap": 1.0}], ids=str)
def test_every_path_gives_the_same_noise_and_gradients(build, tail):
    settings = {"forget_noise": 0.5, **CLIP, **tail}
    wanted, gradients = loss_and_gradients(build(**settings, **PATHS["plain"]))
    for path in ("fused", "split", "packed"):
        loss, found = loss_and_gradients(build(**settings, **PATHS[path]))
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{path} {name}")
    other, _ = loss_and_gradients(build(**settings, **PATHS["fused"]), seed=1)
    assert abs(other - wanted) > 1e-4


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_what_reaches_no_state_trains_the_same_weights(build, peft_config):
    # Bit for bit: a norm that nothing exceeds, against everything off.
    runs = [build(peft_config=peft_config), build(peft_config=peft_config, forget_clip=1e6, name="clipped")]
    assert runs[0].forward_path.needs["forget"].changes is None
    assert runs[1].forward_path.needs["forget"].changes == ForgetNoise(1e6, 0.0, 0.0)
    for trainer in runs:
        trainer.train()
    assert not changed(weights(runs[0].model), weights(runs[1].model))


def test_evaluation_sees_nothing_of_it(build):
    noisy, quiet = build(forget_noise=50.0, forget_clip=0.1), build(name="quiet")
    assert noisy.evaluate()["eval_forget_loss"] == quiet.evaluate()["eval_forget_loss"]
    batch = train_batch(quiet, range(3))
    found = [t.compute_loss(t.model.eval(), batch).item() for t in (noisy, quiet)]
    assert found[0] == found[1]
    losses = {trainer: loss_and_gradients(trainer)[0] for trainer in (noisy, quiet)}
    assert abs(losses[noisy] - losses[quiet]) > 1
    assert not noisy.model.lm_head._forward_pre_hooks


def test_noise_goes_on_where_it_was_after_a_resume(build, tmp_path):
    settings = {"forget_noise": 0.5, "save_strategy": "steps", "save_steps": 2}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert not changed(weights(whole.model), weights(resumed.model))
    # The seed decides it.
    other = build(**settings, seed=7, data_seed=42, name="other")
    other.train()
    assert changed(weights(whole.model), weights(other.model))


@pytest.mark.parametrize(
    ("settings", "warned"), [(CLIP, True), ({"forget_shrink": 0.3}, True), ({"forget_noise": 0.1}, False)]
)
def test_a_log_that_may_look_better_than_the_model_is_warned_of(build, caplog, settings, warned):
    build(**settings)
    assert ("the log may show them uniform while the model still answers" in caplog.text) == warned


@pytest.mark.parametrize("how", ["project", "pcgrad"])
def test_projected_gradients_take_it_too(build, how):
    trainer = build(**CLIP, forget_shrink=0.3, grad_ortho=how, max_steps=2)
    assert trainer.forward_path.shape == "one"
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


# Classifiers


@pytest.mark.parametrize("shape", ["one", "split"])
def test_the_objective_of_a_classifier_is_of_changed_states(build, shape):
    rows = {"forget": make_rows(4), "retain": make_rows(6, first=10)}
    shrink = 0.4 if shape == "one" else 0.0
    settings = {"alpha": 2.0, "beta": 0.0, "retain_weight": 0.0, "forward_passes": shape}
    trainer = build(make_vilt(), **rows, **settings, forget_clip=0.8, forget_shrink=shrink)
    model, seen = trainer.model, {}
    batch = train_batch(trainer, range(3))
    hook = model.classifier.register_forward_pre_hook(lambda module, args: seen.setdefault("states", args[0].detach()))
    trainer.compute_loss(model.eval(), batch)
    hook.remove()
    if shape == "one":
        forget, retain = seen["states"][:3], seen["states"][3:]
    else:
        forget, retain = seen["states"], torch.zeros(1)
    states = forget + shrink * (retain.mean(0) - forget)
    norms = states.norm(dim=-1, keepdim=True)
    assert (norms > 0.8).any()
    with torch.no_grad():
        logits = model.classifier(torch.where(norms > 0.8, 0.8 * states / norms, states)).double()
    wanted = 2 * (4 * -(5 * (logits / 2).softmax(-1)).log().mean(-1)).mean()
    assert trainer.compute_loss(model.train(), batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert not model.classifier._forward_pre_hooks


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget_clip": 0.0}, "forget_clip"),
        ({"forget_noise": -0.1}, "forget_noise"),
        ({"forget_shrink": 1.5}, "forget_shrink=1.5 is a share"),
        ({"forget_shrink": 0.5, "retain_loss": "none"}, "forget_shrink: for retain rows"),
        ({"forget_shrink": 0.5, "forward_passes": "split"}, "forward_passes='split' gives each role its own"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        MUAlignConfig(output_dir="unused", report_to="none", use_cpu=True, **settings)
