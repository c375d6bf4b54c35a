# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware steps and random smoothing, against plain loops."""

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights

from hf_unlearn import GATrainer, IdkNLLTrainer, MUAlignTrainer, NPOTrainer, RepNoiseTrainer, RetrainTrainer
from hf_unlearn.addons.steps.neighbours import RandomSmoothing


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy of {i:02d}."} for i in range(8)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(8)]
LOOP = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.5, "gradient_accumulation_steps": 2, "max_steps": 2}


@pytest.fixture
def trained(build, tmp_path):
    """A trainer, trained unless `max_steps` is 0."""

    def trained(trainer=NPOTrainer, given=None, out="out", train=True, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN}
        settings = {"retain_loss": "nll", "max_steps": 2, "reference": "live", "output_dir": tmp_path / out} | settings
        if (given or {}).get("peft_config"):
            settings["reference"] = "auto"
        made = build(trainer, given=rows | (given or {}), **settings)
        if train:
            made.train()
        return made

    return trained


def trained_weights(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def plain_loop(loop, shifts_of, smoothed):
    """Two SGD steps as the formulas say, the shifts of the smoothed terms by `shifts_of(step, gradients)`."""
    loop.references.open(loop.accelerator)
    model, batches = loop.model.train(), list(loop.get_train_dataloader())
    parameters = trained_weights(model)

    def gradient(accumulated, take):
        found = (loop.weighted_terms(model, batch).items() for batch in accumulated)
        total = sum(term for terms in found for name, term in terms if take(name)) / 2
        return torch.autograd.grad(total, parameters) if torch.is_tensor(total) else [0.0] * len(parameters)

    for step in range(2):
        accumulated = batches[2 * step : 2 * step + 2]
        others = gradient(accumulated, lambda name: name not in smoothed)
        here = gradient(accumulated, lambda name: name in smoothed)
        before, around = [weight.detach().clone() for weight in parameters], []
        for shift in shifts_of(step, here):
            with torch.no_grad():
                for weight, old, by in zip(parameters, before, shift, strict=True):
                    weight.copy_(old + by)
            around.append(gradient(accumulated, lambda name: name in smoothed))
        means = [sum(parts) / len(around) for parts in zip(*around, strict=True)]
        whole = [mean + other for mean, other in zip(means, others, strict=True)]
        clip = min(1.0, 0.5 / torch.cat([g.flatten() for g in whole]).norm().item())
        with torch.no_grad():
            for weight, old, by in zip(parameters, before, whole, strict=True):
                weight.copy_(old - 0.05 * clip * by)
    return parameters


@pytest.mark.parametrize(
    ("terms", "retain", "peft"),
    [("forget", "nll", False), ("forget", "kl", True), ("all", "nll", False), ("forget", "none", False)],
)
def test_sharpness_aware_steps_equal_a_plain_loop(trained, terms, retain, peft):
    given = {"retain_dataset": None} if retain == "none" else {}
    settings = LOOP | {"retain_loss": retain}
    adapter = {"peft_config": lora()} if peft else {}
    trainer = trained(given=given | adapter, sam_rho=0.05, sam_terms=terms, **settings)
    loop = trained(given=given | adapter, out="loop", train=False, **settings)

    def along(step, gradients):
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        yield [0.05 * g / norm for g in gradients]

    expected = plain_loop(loop, along, {"forget"} if terms == "forget" else {"forget", "retain"})
    for own, other in zip(trained_weights(trainer.model), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)
    # A pass for what is smoothed and one for the others, beside the step's own.
    plain = trained(given=given | adapter, out="plain", **settings)
    times = 3 if (terms, retain) not in {("all", "nll"), ("forget", "none")} else 2
    assert trainer.state.total_flos == pytest.approx(times * plain.state.total_flos, rel=0.1)
    assert any("sam/grad_norm" in entry for entry in trainer.state.log_history)
    assert changed(weights(trainer.model), weights(plain.model))


@pytest.mark.parametrize(("method", "forgetting"), [(RepNoiseTrainer, {"forget"}), (IdkNLLTrainer, {"alternate"})])
def test_other_answers_are_on_the_side_that_the_method_has_them_on(trained, method, forgetting):
    settings = LOOP | {"alternate_source": "shuffled", "gradient_accumulation_steps": 1}
    trainer = trained(method, sam_rho=0.05, **settings | {"max_steps": 1})
    loop = trained(method, out="loop", train=False, **settings)
    batch = next(iter(loop.get_train_dataloader()))
    model, weights = loop.model.train(), trained_weights(loop.model)

    def gradient(forget):
        terms = loop.weighted_terms(model, batch).items()
        return torch.autograd.grad(sum(term for name, term in terms if (name in forgetting) == forget), weights)

    kept, here = gradient(False), gradient(True)
    norm = torch.cat([g.flatten() for g in here]).norm()
    with torch.no_grad():
        for weight, by in zip(weights, here, strict=True):
            weight += 0.05 * by / norm
    whole = [around + other for around, other in zip(gradient(True), kept, strict=True)]
    clip = min(1.0, 0.5 / torch.cat([g.flatten() for g in whole]).norm().item())
    for own, weight, direction, by in zip(trained_weights(trainer.model), weights, here, whole, strict=True):
        expected = weight - 0.05 * direction / norm - 0.05 * clip * by
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("terms", ["forget", "all"])
def test_random_smoothing_equals_a_plain_loop(trained, terms, monkeypatch):
    seen, shifts = [], RandomSmoothing.shifts

    def record(self, *args):
        for shift in shifts(self, *args):
            seen.append([by.clone() for by in shift])
            yield shift

    monkeypatch.setattr(RandomSmoothing, "shifts", record)
    trainer = trained(smoothing_std=0.02, smoothing_draws=2, smoothing_terms=terms, **LOOP)
    assert len(seen) == 4
    noise = torch.stack([torch.cat([by.flatten() for by in shift]) for shift in seen])
    assert noise.std(1) == pytest.approx([0.02] * 4, rel=0.03)
    assert noise.corrcoef().fill_diagonal_(0).abs().max() < 0.03
    loop = trained(out="loop", train=False, **LOOP)
    smoothed = {"forget"} if terms == "forget" else {"forget", "retain"}
    expected = plain_loop(loop, lambda step, _: seen[2 * step : 2 * step + 2], smoothed)
    for own, other in zip(trained_weights(trainer.model), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("settings", [{"sam_rho": 1e-9}, {"smoothing_std": 1e-12}])
def test_no_shift_is_the_plain_step(trained, settings):
    trainer, plain = trained(**LOOP, **settings), trained(out="plain", **LOOP)
    for own, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"sam_rho": 0.1}, {"smoothing_std": 0.1}])
def test_the_weights_come_back_bit_for_bit(trained, settings):
    trainer = trained(learning_rate=0.0, weight_decay=0.0, **settings)
    assert not changed(weights(make_model()), weights(trainer.model))


def test_accumulation_changes_nothing(trained):
    # Of one length: means over tokens of a micro-batch are those of all micro-batches.
    rows = {f"{role}_dataset": [{"text": f"{role} {i:02d} of Ada"} for i in range(8)] for role in ("forget", "retain")}
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        settings = LOOP | {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        found.append(weights(trained(out=f"{size}", given=rows, sam_rho=0.05, **settings).model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [{"sam_rho": 0.05}, {"smoothing_std": 0.01}])
def test_a_resumed_run_ends_with_the_same_weights(trained, settings):
    whole = trained(out="whole", max_steps=4, save_strategy="steps", save_steps=2, **settings)
    rest = trained(out="rest", max_steps=4, train=False, **settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert not changed(weights(whole.model), weights(rest.model))


def test_an_add_ons_term_is_one_of_the_others(trained):
    settings = LOOP | {"value_norm_penalty": 1.0}
    trainer = trained(sam_rho=0.05, **settings)
    loop = trained(out="loop", train=False, **settings)

    def along(step, gradients):
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        yield [0.05 * g / norm for g in gradients]

    for own, other in zip(trained_weights(trainer.model), plain_loop(loop, along, {"forget"}), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)


def test_with_a_mask_the_shift_is_among_the_weights_that_train(trained, monkeypatch):
    seen = []
    from hf_unlearn.addons.steps.neighbours import SharpnessAware

    shifts = SharpnessAware.shifts
    monkeypatch.setattr(
        SharpnessAware, "shifts", lambda self, *args: (seen.append(shift) or shift for shift in shifts(self, *args))
    )
    trainer = trained(sam_rho=0.05, mask_by="random", weight_decay=0.1, max_steps=3)
    masks = trainer.addons["mask"].masks
    assert len(seen) == 3
    for shift in seen:
        for by, mask in zip(shift, masks.values(), strict=True):
            assert not by[~mask].any()
    entered = weights(make_model())
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight[~masks[name]], entered[name][~masks[name]])
        assert not torch.equal(weight, entered[name])


def test_a_shift_that_rounding_takes_away_is_told(trained, caplog):
    trained(given={"model": make_model().bfloat16()}, sam_rho=1e-4, max_steps=1)
    assert sum("SAM shifts the weights by 0.0001" in record.message for record in caplog.records) == 1
    caplog.clear()
    trained(sam_rho=1e-3, max_steps=1, out="float32")
    assert not any("shifts the weights" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sam_rho": 0.0}, "sam_rho=0.0; give a finite number above 0"),
        ({"sam_rho": 0.1, "sam_terms": "retain"}, "sam_terms='retain'; allowed: 'forget', 'all'"),
        ({"sam_terms": "all"}, "sam_terms would have no effect: give `sam_rho`"),
        ({"smoothing_draws": 2}, "smoothing_draws would have no effect: give `smoothing_std`"),
        ({"smoothing_std": 0.1, "smoothing_draws": 0}, "smoothing_draws=0"),
        ({"smoothing_std": 0.1, "sam_rho": 0.1}, "each would replace the other's gradients"),
        ({"smoothing_std": 0.1, "optim": "lomo"}, "Random smoothing reads a step's whole gradients, and optim='lomo'"),
        ({"sam_rho": 0.1, "trainer": RetrainTrainer}, r"SAM is about the forget term, and .* pass sam_terms='all'"),
        ({"sam_rho": 0.1, "trainer": MUAlignTrainer, "grad_ortho": "project"}, "SAM repeats steps with some of"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(trained, model_path, unloaded, settings, told):
    with pytest.raises(ValueError, match=told):
        trained(given={"model": model_path, "processing_class": make_tokenizer()}, train=False, **settings)


def test_a_run_without_forget_rows_is_smoothed_whole(trained):
    trainer = trained(RetrainTrainer, sam_rho=0.05, sam_terms="all")
    plain = trained(RetrainTrainer, out="plain")
    assert changed(weights(trainer.model), weights(plain.model))


def test_gradient_ascent_with_classic_sam(trained):
    assert trained(GATrainer, sam_rho=0.05, sam_terms="all").state.global_step == 2


def test_steps_without_the_smoothed_term_are_plain(trained):
    # SCRUB's steps are for forget or for retain rows.
    from hf_unlearn import ScrubTrainer

    trainer = trained(ScrubTrainer, sam_rho=0.05, max_steps=-1, num_train_epochs=2, msteps=1)
    assert trainer.state.global_step > 4
