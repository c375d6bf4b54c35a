# SPDX-License-Identifier: Apache-2.0
"""`grad_ortho` with any method, against plain loops."""

import pytest
import torch
from conftest import changed, lora, make_tokenizer, weights

from hf_unlearn import (
    DPOUnlearnTrainer,
    GATrainer,
    IdkNLLTrainer,
    LLMUTrainer,
    NPOTrainer,
    RepNoiseTrainer,
    RetrainTrainer,
    RMUTrainer,
    ScrubTrainer,
)
from hf_unlearn.addons.gradient_conflict import TwoGradients


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy of {i:02d}."} for i in range(8)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(8)]
LOOP = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.5, "gradient_accumulation_steps": 2}
RMU = {"layer_id": 1, "layer_ids": [0, 1], "param_ids": None, "retain_loss": "states"}


@pytest.fixture
def trained(build, tmp_path):
    """A trainer, trained if asked."""

    def trained(trainer=NPOTrainer, given=None, out="out", train=True, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN}
        reference = "auto" if (given or {}).get("peft_config") or trainer is GATrainer else "live"
        settings = {
            "retain_loss": "nll",
            "max_steps": 2,
            "reference": reference,
            "output_dir": tmp_path / out,
        } | settings
        made = build(trainer, given=rows | (given or {}), **settings)
        if train:
            made.train()
        return made

    return trained


def combined(how, forget, kept):
    """The two published rules, on the gradients of all weights in one vector each."""
    dot = forget @ kept
    # RMU's retain term has no gradient yet at the first step.
    if how == "project" or dot < 0:
        forget_left = forget - dot / (kept @ kept).clamp(min=1e-30) * kept
        kept_left = kept - dot / (forget @ forget) * forget if how == "pcgrad" else kept
        return forget_left + kept_left
    return forget + kept


def plain_loop(loop, how, forget_terms=("forget",)):
    """Two SGD steps as the formulas say; returns the cosines."""
    loop.references.open(loop.accelerator)
    model, batches, cosines = loop.model.train(), list(loop.get_train_dataloader()), []
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    for step in range(2):
        # Some methods draw by it.
        loop.state.global_step = step
        sides = [0.0, 0.0]
        for batch in batches[2 * step : 2 * step + 2]:
            for name, term in loop.weighted_terms(model, batch).items():
                found = torch.autograd.grad(
                    term / 2, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                sides[name not in forget_terms] += torch.cat([g.flatten() for g in found])
        whole = combined(how, *sides)
        cosines.append(torch.nn.functional.cosine_similarity(*sides, dim=0).item())
        whole *= min(1.0, 0.5 / whole.norm().item())
        with torch.no_grad():
            for weight, by in zip(parameters, whole.split([w.numel() for w in parameters]), strict=True):
                weight -= 0.05 * by.view_as(weight)
    return cosines


@pytest.mark.parametrize("how", ["project", "pcgrad"])
def test_gradients_of_any_size_are_projected(how):
    weight = torch.nn.Parameter(torch.zeros(3))
    forget, kept = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([-1.0, 0.5, 3.0])
    two = TwoGradients([weight], lambda loss, **kwargs: loss.backward(**kwargs))
    two.add("kept", 1e-10 * (weight @ kept))
    two.add("forget", 1e-10 * (weight @ forget))
    two.combine(how)
    torch.testing.assert_close(1e10 * weight.grad, combined(how, forget, kept), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "how", "settings"),
    [
        (NPOTrainer, "project", {}),
        (NPOTrainer, "pcgrad", {"retain_loss": "kl", "peft": True}),
        (GATrainer, "pcgrad", {"value_norm_penalty": 0.5, "forward_passes": "one"}),
        (DPOUnlearnTrainer, "project", {"alternate_source": "shuffled"}),
        (RMUTrainer, "project", RMU),
    ],
)
def test_a_step_equals_a_plain_loop(trained, method, how, settings):
    settings = LOOP | settings
    given = {"peft_config": lora()} if settings.pop("peft", False) else {}
    trainer = trained(method, given=given, grad_ortho=how, **settings)
    shape = "one" if "forward_passes" in settings else "split"
    # Shared or not, rows give the same.
    loop = trained(method, given=given, out="loop", train=False, **settings | {"forward_passes": "split"})
    assert trainer.forward_path.shape == shape
    with loop.trainable.during_training(loop.model):
        cosines = plain_loop(loop, how)
    for own, other in zip(trainer.model.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)
    logged = [entry["forget/cosine_to_retain"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(cosines, rel=1e-2, abs=1e-4)
    plain = trained(method, given=given, out="plain", **settings)
    assert changed(weights(trainer.model), weights(plain.model))


@pytest.mark.parametrize(
    ("method", "forgetting"),
    [
        # Harmless answers are what it keeps.
        (RepNoiseTrainer, {"forget"}),
        (LLMUTrainer, {"forget", "alternate"}),
        (IdkNLLTrainer, {"alternate"}),
    ],
)
def test_other_answers_are_on_the_side_that_the_method_has_them_on(trained, method, forgetting):
    settings = LOOP | {"alternate_source": "shuffled", "forward_passes": "split"}
    trainer = trained(method, grad_ortho="project", **settings)
    loop = trained(method, out="loop", train=False, **settings)
    with loop.trainable.during_training(loop.model):
        plain_loop(loop, "project", forgetting)
    for own, other in zip(trainer.model.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)


def test_a_resumed_run_ends_with_the_same_weights(trained):
    settings = {"grad_ortho": "project", "max_steps": 4, "gradient_accumulation_steps": 2}
    whole = trained(out="whole", save_strategy="steps", save_steps=2, **settings)
    rest = trained(out="rest", train=False, **settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert not changed(weights(whole.model), weights(rest.model))


def test_a_step_of_one_side_is_the_plain_step(trained):
    # SCRUB's steps are for forget or for retain rows.
    settings = {"max_steps": -1, "num_train_epochs": 2, "msteps": 1, "scrub_warmup": "min_first"}
    trainer = trained(ScrubTrainer, grad_ortho="project", **settings)
    plain = trained(ScrubTrainer, out="plain", **settings)
    for own, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-5)


def test_with_a_mask_gradients_are_compared_among_the_weights_that_train(trained):
    settings = {"mask_by": "random", "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 1}
    trainer = trained(grad_ortho="project", **settings)
    kept = trained(out="kept", forget_weight=0.0, **settings)
    entered = weights(trained(out="entered", train=False, **settings).model)
    steps = [
        torch.cat([(weight - entered[name]).flatten() for name, weight in found.model.named_parameters()])
        for found in (trainer, kept)
    ]
    masks = torch.cat([mask.flatten() for mask in trainer.addons["mask"].masks.values()])
    assert not steps[0][~masks].any()
    # What forget rows add is at right angles to the step of retain rows.
    assert abs((steps[0] - steps[1]) @ steps[1]) < 1e-3 * steps[1].norm() * (steps[0] - steps[1]).norm()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"grad_ortho": "on"}, "grad_ortho='on'; allowed: 'off', 'project', 'pcgrad'"),
        ({"retain_loss": "none"}, "grad_ortho: for retain rows, .* retain_loss='none'"),
        ({"retain_loss": None, "given": {"retain_dataset": None}}, "grad_ortho: for retain rows"),
        ({"trainer": RetrainTrainer}, "compares the forget gradient with others, and this run has retain rows"),
        ({"optim": "lomo"}, "takes several backward passes, and optim='lomo' steps within the backward pass"),
        ({"sam_rho": 0.1}, "SAM repeats steps with some of their terms, and grad_ortho takes"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(trained, model_path, unloaded, settings, told):
    given = {"model": model_path, "processing_class": make_tokenizer()} | settings.pop("given", {})
    with pytest.raises(ValueError, match=told):
        trained(given=given, train=False, **{"grad_ortho": "project"} | settings)
