# SPDX-License-Identifier: Apache-2.0
"""SCRUB: the order of its phases, its losses against slow formulas, what makes a start, rewind, and the grid's
behaviours (`test_methods.py`), phase by phase."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from safetensors.torch import load_file
from test_methods import FORGET, RAGGED_FORGET, RAGGED_RETAIN, RETAIN, labelled, log_probabilities, shake
from transformers import AutoModelForCausalLM, TrainerCallback
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import ScrubConfig, ScrubTrainer
from hf_unlearn.methods.scrub.phases import MAX, MIN, PhasedRows, phase_order
from hf_unlearn.methods.scrub.rewind import nearest
from hf_unlearn.training.dropout import has_dropout


HOLDOUT = [{"text": f"secret {i:02d} of Cyd"} for i in range(5)]
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@pytest.fixture
def build(tmp_path):
    """Makes a trainer: 4 epochs, of which 2 have max steps; keyword arguments are the config's."""

    def build(forget=FORGET, retain=RETAIN, adapter=False, model=None, eval_dataset=None, out="out", **kwargs):
        settings = {"max_steps": -1, "num_train_epochs": 4, "msteps": 2, "scrub_warmup": "param_noise"} | kwargs
        return ScrubTrainer(
            model=model or make_model(),
            args=make_args(ScrubConfig, tmp_path / out, **settings),
            forget_dataset=forget,
            retain_dataset=retain,
            eval_dataset=eval_dataset,
            processing_class=make_tokenizer(),
            peft_config=lora(target_modules="all-linear") if adapter else None,
        )

    return build


def role_of_steps(trainer) -> list[str]:
    """The role that each logged step trained on."""
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    found = [{key.split("/")[0] for key in entry if "/" in key and "weights" not in key} for entry in logs]
    assert all(len(roles) == 1 for roles in found)
    return [roles.pop() for roles in found]


# The order


@pytest.mark.parametrize(
    ("min_first", "wanted"),
    [(False, "max,min,max,min,min,min"), (True, "min,max,min,max,min,min")],
)
def test_phases_of_four_epochs_of_which_two_maximise(min_first, wanted):
    names = {MAX: "max", MIN: "min"}
    assert ",".join(names[phase.role] for phase in phase_order(4, 2, min_first)) == wanted


@pytest.mark.parametrize(("warmup", "epoch"), [("param_noise", [MAX, MIN]), ("min_first", [MIN, MAX])])
def test_a_run_takes_its_phases_whole_and_in_order(build, warmup, epoch):
    trainer = build(scrub_warmup=warmup)
    trainer.train()
    steps = {MAX: [MAX] * 4, MIN: [MIN] * 6}
    wanted = [role for phase in [*epoch * 2, MIN, MIN] for role in steps[phase]]
    assert role_of_steps(trainer) == wanted
    assert [phase.role for phase in trainer.train_dataset.phase_of_steps()] == wanted
    assert trainer.epoch_ends == [10, 20, 26, 32]


def rows_of(count: int) -> list[dict]:
    return [{"input_ids": [i], "labels": [i]} for i in range(count)]


@pytest.mark.parametrize(("places", "size", "batches"), [(4, 4, 1), (4, 2, 1), (4, 3, 2), (2, 2, 6), (8, 8, 4)])
def test_no_step_has_two_phases_and_every_phase_all_rows(places, size, batches):
    phases = phase_order(3, 2)
    pairs = PhasedRows(
        {"forget": rows_of(7), "retain": rows_of(17)}, phases, {"forget": size, "retain": places}, places, batches, 5
    )
    assert len(pairs) % (places * batches) == 0
    position, orders = 0, []
    for phase, steps in zip(phases, pairs.steps, strict=True):
        seen = []
        for _ in range(steps * batches):
            items = [pairs[position + place] for place in range(places)]
            own = [item[phase.role]["index"] for item in items if item]
            # No process is ever without a row, and no batch too large.
            assert 1 <= len(own) <= (size if phase.role == "forget" else places)
            assert all(list(item) == [phase.role] for item in items if item)
            seen += own
            position += places
        count = len(pairs.roles[phase.role])
        assert set(seen) == set(range(count))
        if count >= steps * batches:
            assert len(seen) == count
        orders.append(seen)
    assert position == len(pairs)
    assert orders[0] != orders[2]
    again = PhasedRows(pairs.roles, phases, {"forget": size, "retain": places}, places, batches, 5)
    middle = len(pairs) // 2
    assert again[middle] == pairs[middle]


def test_forget_batches_may_be_smaller(build):
    trainer = build(per_device_train_batch_size=4, forget_batch_size=1)
    assert trainer.epoch_ends == [11, 22, 25, 28]
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(dict(trainer.meters._counts))

    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) == 28


def test_steps_count_as_scrubs_epochs(build):
    trainer = build(save_strategy="epoch", logging_strategy="epoch", save_total_limit=10)
    trainer.train()
    assert trainer.state.global_step == 32
    logged = [entry["epoch"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged == [1, 2, 3, 4]
    saved = sorted(int(path.name.split("-")[1]) for path in Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert saved == [10, 20, 26, 32]


@pytest.mark.parametrize(("asked", "made"), [(5, 5), (1000, 32)])
def test_max_steps_only_cuts_the_run_short(build, asked, made):
    trainer = build(max_steps=asked)
    trainer.train()
    assert trainer.state.global_step == made


def test_rate_falls_after_the_listed_epochs(build):
    trainer = build(lr_decay_epochs=[1, 3, 9], lr_decay_rate=0.5)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2] * 10 + [5e-3] * 16 + [2.5e-3] * 6)


# The losses


def divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> float:
    """T^2 KL(teacher || student) of one prediction, from log-probabilities in float64."""
    p, q = ((log_p / temperature).softmax(-1) for log_p in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum().item()


@adapters
@pytest.mark.parametrize("role", [MAX, MIN])
def test_losses_equal_the_formulas_on_rows_of_any_length(build, role, adapter):
    trainer = build(
        RAGGED_FORGET, RAGGED_RETAIN, adapter, per_device_train_batch_size=4, temperature=3.0, alpha=0.3, gamma=0.7,
        reference="adapter" if adapter else "live", scrub_warmup="none",
    )  # fmt: skip
    entered, policy = make_model(), trainer.model.eval()
    shake(policy, 0.2)
    start = 0 if role == MAX else 4
    items = [trainer.train_dataset[position] for position in range(start, start + 4)]
    rows = [item[role] for item in items if item]
    values = []
    for row in rows:
        student, teacher = (log_probabilities(model, row) for model in (policy, entered))
        tokens = []
        for t, label in labelled(row):
            d = divergence(teacher[t], student[t], 3.0)
            tokens.append(-d if role == MAX else 0.3 * d + 0.7 * -student[t, label].item())
        values.append(sum(tokens) / len(tokens))
    loss = trainer.compute_loss(policy, train_batch(trainer, range(start, start + 4)))
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=2e-4)
    assert abs(loss.item()) > 0.01


def test_the_divergence_is_pushed_no_further_than_asked(build):
    grads = {}
    for limit in (None, 0.01):
        trainer = build(max_divergence=limit, reference="live", per_device_train_batch_size=4)
        shake(trainer.model)
        loss = trainer.compute_loss(trainer.model, train_batch(trainer, range(4)))
        loss.backward()
        grads[limit] = max(p.grad.abs().max().item() for p in trainer.model.parameters())
    assert grads[None] > 1e-3
    assert grads[0.01] == 0
    assert loss.item() == pytest.approx(-0.01)


# A start


def first_gradient(build, **kwargs) -> tuple[float, float]:
    """Norm of the gradient in the first max step, and the divergence there."""
    # float64: what is rounding there is nowhere near what is not.
    trainer = build(model=make_model().double(), reference="live", **kwargs)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "forget/divergence" in entry)
    return entry["grad_norm"], entry["forget/divergence"]


def test_without_dropout_a_student_that_is_its_teacher_has_nothing_to_climb(build, caplog):
    norm, found = first_gradient(build, scrub_warmup="none", max_steps=1)
    assert norm < 1e-9
    assert found < 1e-9
    assert "scrub_warmup='none', and the model has no dropout" in caplog.text


@pytest.mark.parametrize("warmup", ["min_first", "param_noise", "dropout"])
def test_every_warmup_gives_the_first_max_step_a_gradient(build, caplog, warmup):
    norm, found = first_gradient(build, scrub_warmup=warmup, max_steps=8)
    assert norm > 1e-4
    assert found > 1e-7
    assert "no dropout" not in caplog.text


def test_noise_is_seeded_and_not_in_the_teacher(build):
    found = {}
    for run, seed in (("one", 1), ("same", 1), ("other", 2)):
        trainer = build(max_steps=1, seed=seed, data_seed=0, learning_rate=0.0, reference="live")
        before = weights(trainer.reference.model)
        trainer.train()
        found[run] = weights(trainer.model)
        assert not changed(before, weights(trainer.reference.model))
        assert not changed(before, weights(make_model()))
    assert not changed(found["one"], found["same"])
    assert changed(found["one"], found["other"])
    start = weights(make_model())
    for name, weight in found["one"].items():
        share = (weight - start[name]).square().mean().sqrt() / start[name].square().mean().sqrt()
        assert share == pytest.approx(0.01, rel=0.5), name


def test_noise_reaches_an_adapter_of_zeros(build):
    trainer = build(adapter=True, max_steps=1)
    trainer.train()
    moved = [p.abs().max().item() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert min(moved) > 1e-4


def test_dropout_is_off_outside_of_forget_phases(build):
    trainer = build(scrub_warmup="dropout", warmup_dropout=0.5, reference="live", per_device_train_batch_size=4)
    model = trainer.model.train()
    batches = {MAX: train_batch(trainer, range(4)), MIN: train_batch(trainer, range(8, 12))}
    losses = {role: {trainer.compute_loss(model, batch).item() for _ in range(3)} for role, batch in batches.items()}
    assert len(losses[MAX]) == 3
    assert len(losses[MIN]) == 1


def test_a_model_with_dropout_needs_none(build, caplog):
    model = make_model()
    assert not has_dropout(model)
    model.config.attention_dropout = 0.1
    assert has_dropout(model)
    build(model=model, scrub_warmup="none")
    assert "no dropout" not in caplog.text


# Rewind


def test_the_nearest_epoch_is_chosen_and_of_several_the_last():
    errors = {"0": 0.1, "1": 2.0, "2": 4.0, "3": 3.0, "10": 3.0}
    assert nearest(errors, 3.4) == "10"
    assert nearest(errors, 0.9) == "0"
    assert nearest(errors, 9.0) == "2"


def slow_error(model, rows, kind: str) -> float:
    """Mean over rows of the mean over a row's tokens, of loss or of wrong guesses."""
    values = []
    for row in rows:
        log_p = log_probabilities(model, row)
        tokens = [-log_p[t, y].item() if kind == "loss" else float(log_p[t].argmax() != y) for t, y in labelled(row)]
        values.append(sum(tokens) / len(tokens))
    return sum(values) / len(values)


@adapters
@pytest.mark.parametrize("kind", ["loss", "error"])
def test_rewind_ends_with_the_chosen_epochs_weights(build, tmp_path, kind, adapter):
    trainer = build(
        adapter=adapter, eval_dataset={"holdout": HOLDOUT}, rewind=True, rewind_error=kind, temperature=1.0, alpha=0.0
    )
    last = {}

    class Last(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 32:
                last["wanted"] = slow_error(trainer.model.eval(), trainer.eval_dataset["holdout"], kind)

    trainer.add_callback(Last())
    trainer.train()
    found = json.loads((tmp_path / "out" / "rewind.json").read_text())
    assert list(found["forget"]) == ["0", "1", "2", "3", "4"]
    assert found["wanted"] == pytest.approx(last["wanted"], rel=1e-4)
    wanted = min(found["forget"], key=lambda e: (abs(found["forget"][e] - found["wanted"]), -int(e)))
    assert found["epoch"] == int(wanted)
    # What is in the model, in the file and in the table is one.
    kept = load_file(tmp_path / "out" / "rewind" / f"epoch-{wanted}.safetensors")
    now = {name: p for name, p in trainer.model.named_parameters() if name in kept}
    assert kept.keys() == now.keys()
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    error = slow_error(trainer.model.eval(), trainer.train_dataset.roles["forget"], kind)
    assert error == pytest.approx(found["forget"][wanted], rel=1e-4)
    assert len(set(found["forget"].values())) > 2


def test_rewind_can_go_back_to_the_start(build, tmp_path):
    # Rows that the model knows as little as the forget rows before: only step 0 is as bad on both.
    trainer = build(eval_dataset={"holdout": HOLDOUT}, rewind=True, learning_rate=1e-6, warmup_noise=0.0)
    trainer.train()
    trainer.rewind.put(0)
    assert not changed(weights(make_model()), weights(trainer.model))


def test_rewind_goes_on_after_a_resume(build, tmp_path):
    settings = {"rewind": True, "eval_dataset": {"holdout": HOLDOUT}, "save_strategy": "steps", "save_steps": 13}
    whole = build(**settings)
    whole.train()
    found = (tmp_path / "out" / "rewind.json").read_text()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-13"))
    assert (tmp_path / "out" / "rewind.json").read_text() == found
    assert not changed(weights(whole.model), weights(resumed.model))


def test_rewind_needs_the_epochs_before_a_resume(build, tmp_path):
    settings = {"rewind": True, "eval_dataset": {"holdout": HOLDOUT}, "save_strategy": "steps", "save_steps": 23}
    whole = build(max_steps=24, **settings)
    whole.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-23")
    moved = build(max_steps=24, out="moved", **settings)
    before = weights(moved.model)
    # Epochs 0, 1 and 2 are over by then.
    with pytest.raises(ValueError, match=r"epoch-0\.safetensors and 2 more.* copy .*rewind") as error:
        moved.train(resume_from_checkpoint=checkpoint)
    assert str(tmp_path / "moved" / "rewind") in str(error.value)
    assert not changed(before, weights(moved.model))
    shutil.copytree(tmp_path / "out" / "rewind", tmp_path / "moved" / "rewind")
    moved.train(resume_from_checkpoint=checkpoint)
    assert not changed(weights(whole.model), weights(moved.model))


def test_rewind_needs_a_checkpoint_that_was_made_with_it(build, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 13, "max_steps": 13}
    build(**saves).train()
    trainer = build(rewind=True, eval_dataset={"holdout": HOLDOUT}, **saves)
    with pytest.raises(ValueError, match="the checkpoint was made without it"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-13"))


def test_a_run_that_rewinds_is_evaluated_on_its_own_rows_and_on_any(build):
    trainer = build(eval_dataset={"holdout": HOLDOUT}, rewind=True, eval_strategy="steps", eval_steps=20)
    trainer.train()
    assert [entry for entry in trainer.state.log_history if "eval_holdout_loss" in entry]
    assert trainer.evaluate()["eval_holdout_loss"] == pytest.approx(trainer.evaluate(HOLDOUT)["eval_loss"])


def test_rewind_without_holdout_rows_is_refused(build):
    for given in (None, {"forget": FORGET}, FORGET):
        with pytest.raises(ValueError, match="rewind=True compares with rows like the forget rows"):
            build(rewind=True, eval_dataset=given)


# The grid's behaviours


@adapters
def test_it_forgets_and_keeps(build, adapter):
    settings = {"scrub_warmup": "min_first", "learning_rate": 2e-2 if adapter else 5e-3}
    trainer = build([{"text": f"secret {i:02d} of Ada"} for i in range(24)], adapter=adapter, **settings)
    before = weights(trainer.model)
    trainer.train()
    moved = changed(before, weights(trainer.model))
    assert moved == {name for name in before if "lora_" in name or not adapter}
    logs = trainer.state.log_history
    seen = {key: [entry[key] for entry in logs if key in entry] for key in ("forget/divergence", "retain/nll")}
    # Two phases of twelve max steps; at first the moments of the min steps are in their way.
    assert len(seen["forget/divergence"]) == 24
    for phase in (seen["forget/divergence"][:12], seen["forget/divergence"][12:]):
        assert sum(phase[-3:]) > 1.05 * sum(phase[:3])
    assert seen["retain/nll"][-1] < seen["retain/nll"][0] - 0.1


@pytest.mark.parametrize("start", [0, 4], ids=["max", "min"])
def test_accumulation_gives_the_update_of_one_big_batch(build, start):
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = build(
            RETAIN[:8], FORGET, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            max_steps=1, optim="sgd", max_grad_norm=0.0, warmup_noise=0.2,
            scrub_warmup="param_noise" if start == 0 else "min_first",
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer.model), trainer.state.log_history[0]))
    for name in results[0][0]:
        torch.testing.assert_close(results[1][0][name], results[0][0][name], rtol=1e-4, atol=1e-6)
    for key in [key for key in results[0][1] if "/" in key]:
        assert results[1][1][key] == pytest.approx(results[0][1][key], rel=1e-4, abs=1e-6)


@adapters
@pytest.mark.parametrize("at", [6, 12], ids=["in-min", "in-max"])
def test_resume_in_the_middle_of_a_phase(build, tmp_path, at, adapter):
    settings = {"adapter": adapter, "save_strategy": "steps", "save_steps": 6, "max_steps": 17, "lr_decay_epochs": [1]}
    whole = build(**settings)
    whole.train()
    assert role_of_steps(whole)[at - 1 : at + 1] == ([MIN] * 2 if at == 6 else [MAX] * 2)
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{at}"))
    assert resumed.state.global_step == 17
    assert not changed(weights(whole.model), weights(resumed.model))
    logs = [[e for e in t.state.log_history if "grad_norm" in e][-1]["epoch"] for t in (whole, resumed)]
    assert logs[0] == logs[1]


def test_a_saved_model_predicts_the_same(build, tmp_path):
    trainer = build(max_steps=6)
    trainer.train()
    trainer.save_model()
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
        assert (loaded(ids).logits - make_model()(ids).logits).abs().max() > 1e-3


# Settings


def test_presets_fill_what_is_left_out(tmp_path):
    def made(**kwargs):
        args = ScrubConfig(output_dir=str(tmp_path), report_to="none", **kwargs)
        names = ("learning_rate", "alpha", "gamma", "temperature", "msteps", "num_train_epochs", "lr_decay_epochs")
        return [getattr(args, name) for name in names], args

    assert made()[0] == [1e-5, 0.5, 1.0, 2.0, 3, 10, []]
    assert made(preset="small")[0] == [5e-4, 0.5, 1.0, 2.0, 3, 10, [5, 8, 9]]
    values, large = made(preset="large", msteps=1)
    assert values == [5e-4, 0.001, 0.99, 4.0, 1, 3, [3, 5, 9]]
    assert (large.optim, large.optim_args, large.weight_decay) == ("sgd", "momentum=0.9", 5e-4)
    assert made(preset="mia")[0] == [5e-4, 0.5, 1.0, 4.0, 3, 5, [3, 5, 9]]
    assert made(preset="mia", optim="adamw_torch")[1].optim_args is None
    assert made(preset="mia", optim="sgd")[1].optim_args == "momentum=0.9"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"preset": "huge"}, "preset='huge'; allowed: 'small', 'large', 'mia'"),
        ({"temperature": 0.0}, "temperature=0.0; give a finite number above 0"),
        ({"alpha": -1.0}, "alpha=-1.0; give a finite number at least 0"),
        ({"scrub_warmup": "some"}, "scrub_warmup='some'; allowed"),
        ({"warmup_dropout": 1.0}, "warmup_dropout=1.0 is a share"),
        ({"num_train_epochs": 2.5}, "num_train_epochs=2.5; SCRUB takes whole epochs"),
        ({"num_train_epochs": 3}, "msteps=3 of num_train_epochs=3; give at most 2 with scrub_warmup='min_first'"),
        ({"msteps": 11, "scrub_warmup": "none"}, "msteps=11 of num_train_epochs=10; give at most 10"),
        ({"lr_decay_epochs": [2], "lr_scheduler_type": "linear"}, "both decide the learning rate"),
        ({"forget_batch_size": 9}, "forget_batch_size=9 is above per_device_train_batch_size=8"),
        ({"max_forget_loss": 2.0}, "max_forget_loss=2.0: SCRUB's forget and retain rows have phases"),
        ({"epoch_by": "retain"}, "epoch_by='retain': SCRUB"),
        ({"retain_loss": "kl"}, "retain_loss='kl'; allowed: 'nll'"),
        ({"max_divergence": 0}, "max_divergence=0; give a finite number above 0"),
        ({"rewind_error": "rouge"}, "rewind_error='rouge'; allowed: 'loss', 'error'"),
    ],
)
def test_bad_settings_are_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        ScrubConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **wrong)


def test_unfilled_retain_rows_are_refused(build):
    with pytest.raises(ValueError, match="needs retain rows"):
        build(retain=None)


# Classifiers


def test_a_classifiers_losses_and_rewind(tmp_path):
    forget, retain = make_rows(6), make_rows(8, first=20)
    args = make_args(
        ScrubConfig, tmp_path, max_steps=-1, num_train_epochs=3, msteps=2, rewind=True, rewind_error="error",
        temperature=2.0, alpha=0.3, gamma=0.7, learning_rate=1e-3, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = ScrubTrainer(
        make_vilt(), args, forget_dataset=forget, retain_dataset=retain, processing_class=make_processor(),
        eval_dataset={"holdout": make_rows(3, first=40)},
    )  # fmt: skip
    policy, entered = trainer.model.eval(), make_vilt().eval()
    shake(policy, 0.05)
    # min_first: 2 batches of retain rows, then forget rows.
    for start, role in ((0, MIN), (8, MAX)):
        inputs = train_batch(trainer, range(start, start + 4))
        part = trainer.parts_of(inputs)[role]
        plain = {name: value for name, value in part.items() if name not in ("labels", "index")}
        with torch.no_grad():
            ours, theirs = (model(**plain).logits.double() for model in (policy, entered))
        p, q = ((logits / 2.0).sigmoid() for logits in (theirs, ours))
        d = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
        y, z = part["labels"].double(), ours.sigmoid()
        nll = -(y * z.log() + (1 - y) * (1 - z).log()).sum(-1)
        wanted = -d if role == MAX else 0.3 * d + 0.7 * nll
        assert trainer.compute_loss(policy, inputs).item() == pytest.approx(wanted.mean().item(), rel=1e-4)
    trainer.train()
    found = json.loads((tmp_path / "rewind.json").read_text())
    model, short = trainer.model.eval(), []
    for row in trainer.train_dataset.roles["forget"]:
        with torch.no_grad():
            best = model(**make_processor()(row["image"], row["question"], return_tensors="pt")).logits.argmax().item()
        short.append(1 - dict(zip(row["label_ids"], row["label_weights"], strict=True)).get(best, 0.0))
    assert found["forget"][str(found["epoch"])] == pytest.approx(sum(short) / len(short), abs=1e-6)


def test_rewind_restores_what_forward_passes_change(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    from vilt import picture

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    rows = [{"image": picture(i), "label": i % 3} for i in range(18)]
    trainer = ScrubTrainer(
        ResNetForImageClassification(config),
        make_args(ScrubConfig, tmp_path, max_steps=-1, num_train_epochs=3, msteps=1, rewind=True, rewind_error="loss",
                  scrub_warmup="min_first", per_device_train_batch_size=4),
        forget_dataset=rows[:6],
        retain_dataset=rows[6:14],
        eval_dataset={"holdout": rows[14:]},
        processing_class=ViTImageProcessorPil(size={"height": 16, "width": 16}),
    )  # fmt: skip
    assert trainer.family.pipeline_tag == "image-classification"
    trainer.train()
    # Layers of different sizes have no arithmetic by position.
    assert trainer.state.total_flos == 0
    for epoch, error in trainer.rewind.errors.items():
        trainer.rewind.put(int(epoch))
        assert trainer.rewind.error_on(trainer.train_dataset.roles["forget"]) == pytest.approx(error, rel=1e-6)


def test_an_epoch_cut_short_can_be_chosen(build):
    trainer = build(max_steps=13, eval_dataset={"holdout": HOLDOUT}, rewind=True)
    assert trainer.epoch_ends[0] < 13 < trainer.epoch_ends[1]
    trainer.train()
    assert list(trainer.rewind.errors) == ["0", "1", "2"]
    trainer.rewind.put(2)
    assert trainer.rewind.error_on(trainer.train_dataset.roles["forget"]) == pytest.approx(trainer.rewind.errors["2"])


def test_a_teacher_other_than_the_original_must_be_allowed(tmp_path, caplog):
    def build(**settings):
        return ScrubTrainer(
            make_model(),
            make_args(ScrubConfig, tmp_path, max_steps=1, scrub_warmup="param_noise", **settings),
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            ref_model=make_model(seed=1),
        )

    with pytest.raises(ValueError, match="allow_oracle_teacher=True"):
        build()
    assert build(allow_oracle_teacher=True).reference.model is not None
    assert "an oracle" in caplog.text


def test_max_steps_go_under_a_perturbation_of_forget_rows(build):
    trainer = build(lat_epsilon=0.5, lat_layers=[0], lat_steps=2, num_train_epochs=1, msteps=1)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(("lat/nll" in entry) == ("forget/loss" in entry) for entry in entries)
    assert all(entry["lat/elicited_nll"] < entry["lat/nll"] for entry in entries if "lat/nll" in entry)
    assert {"lat/nll" in entry for entry in entries} == {True, False}
