# SPDX-License-Identifier: Apache-2.0
"""PDU's dual variable: its updates against a loop by hand, in the log and in checkpoints, equal on all processes."""

import json

import pytest
import torch
from conftest import TESTS, changed, make_model, train_batch, weights
from processes import run

from hf_unlearn import METHODS
from hf_unlearn.data.formats import IGNORE_INDEX


CONFIG, PDU = METHODS["pdu"]
SETTINGS = {"retain_weight": 2.0, "retain_loss_eps": 4.0, "dual_step_size": 3.0, "dual_warmup_epochs": 1}


def duals(trainer) -> list[float]:
    return [entry["retain/dual"] for entry in trainer.state.log_history if "retain/dual" in entry]


def by_hand(losses, upon, warmup, per_epoch, dual=2.0, eps=4.0, step_size=3.0) -> list[float]:
    """The dual variable after each step, from the retain losses of the steps."""
    found, seen = [], []
    for number, loss in enumerate(losses, 1):
        seen.append(loss)
        epochs = number / per_epoch
        if upon == "step" or number % per_epoch == 0:
            if epochs > warmup if upon == "step" else epochs >= warmup:
                dual = max(0.0, dual + step_size * (sum(seen) / len(seen) - eps))
            seen = []
        found.append(dual)
    return found


def test_defaults_are_the_published_ones(tmp_path):
    args = CONFIG(output_dir=str(tmp_path))
    assert (args.retain_weight, args.retain_loss_eps, args.dual_step_size) == (100.0, 0.3, 5.0)
    assert (args.dual_warmup_epochs, args.dual_update_upon, args.retain_loss) == (5, "step", "nll")


@pytest.mark.parametrize("upon", ["step", "epoch"])
def test_updates_are_those_of_the_formula_and_weigh_the_next_step(build, upon):
    # 4 forget rows by 2: two steps an epoch.
    settings = {**SETTINGS, "dual_update_upon": upon, "learning_rate": 1e-3, "max_steps": 6}
    trainer = build(PDU, **settings)
    trainer.train()
    losses = [entry["retain/loss"] for entry in trainer.state.log_history if "retain/loss" in entry]
    expected = by_hand(losses, upon, 1, per_epoch=2)
    assert duals(trainer) == pytest.approx(expected, rel=1e-5)
    assert len({*expected}) >= 3
    # A step's objective has the variable as the step before left it.
    for number, entry in enumerate(trainer.state.log_history[:6]):
        weight = 2.0 if number == 0 else expected[number - 1]
        assert entry["loss"] == pytest.approx(entry["forget/loss"] + weight * entry["retain/loss"], rel=1e-3)


def test_the_variable_falls_to_zero_and_no_further(build):
    trainer = build(PDU, **{**SETTINGS, "retain_loss_eps": 50.0, "dual_warmup_epochs": 0, "max_steps": 3})
    trainer.train()
    assert duals(trainer) == [0.0, 0.0, 0.0]
    last = trainer.state.log_history[2]
    assert last["loss"] == pytest.approx(last["forget/loss"], rel=1e-4)


def test_accumulation_gives_the_variable_of_one_big_batch(build):
    # Rows of one length: a mean of means is a mean.
    retain = [{"text": f"common {i:02d} of Bob"} for i in range(8)]
    forget = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        given = {"forget_dataset": forget, "retain_dataset": retain}
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = build(PDU, given, **{**SETTINGS, **sizes}, learning_rate=0.0, max_steps=5)
        trainer.train()
        found.append(duals(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][-1] > found[0][0] + 1


@pytest.mark.parametrize(("upon", "at"), [("step", 3), ("epoch", 3), ("epoch", 4)])
def test_a_resumed_run_goes_on_with_the_variable_and_what_was_seen(build, tmp_path, upon, at):
    settings = {**SETTINGS, "dual_update_upon": upon, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = build(PDU, **settings)
    whole.train()
    resumed = build(PDU, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{at}"))
    assert duals(resumed) == duals(whole)
    assert resumed.dual == whole.dual != 2.0
    assert not changed(weights(whole.model), weights(resumed.model))


def test_passes_that_an_add_on_repeats_count_once(build):
    found = []
    for settings in ({}, {"sam_rho": 0.0001}):
        trainer = build(PDU, **SETTINGS, **settings, learning_rate=0.0, max_steps=4)
        trainer.train()
        found.append(duals(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_the_margin_is_taken_where_labels_are_predicted_and_among_tokens(build, fused):
    # OpenUnlearning's mask is not shifted: it takes the places of labels, one too late.
    model = make_model(vocab_size=128)
    given = {"model": model, "forget_dataset": [{"prompt": "Who?", "completion": " Ada"}] * 2}
    trainer = build(PDU, given, fused_losses=fused, **SETTINGS)
    batch = train_batch(trainer, range(1))
    rows = trainer.role_rows(trainer.model.eval(), batch)["forget"]
    ids, labels = batch["input_ids"][:1], batch["labels"][0]
    logits = model(ids[:, : int(batch["attention_mask"][0].sum())]).logits[0].detach().double()[:, :100]
    places = [t for t in range(1, len(labels)) if labels[t] != IGNORE_INDEX]
    margins = [(logits[t].max() - logits[t].mean()).square().item() for t in range(len(logits))]
    expected = sum(margins[t - 1] for t in places) / len(places)
    assert rows.value.item() == pytest.approx(expected, rel=1e-4)
    assert rows.value.item() != pytest.approx(sum(margins[t] for t in places) / len(places), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"retain_loss": "none"}, "retain_loss='none'; allowed: 'nll', 'kl'"),
        ({"dual_update_upon": "batch"}, "dual_update_upon='batch'; allowed: 'step', 'epoch'"),
        ({"retain_loss_eps": -0.1}, "retain_loss_eps=-0.1; give a finite number at least 0"),
        ({"dual_step_size": 0}, "dual_step_size=0; give a finite number above 0"),
        ({"dual_warmup_epochs": -1}, "dual_warmup_epochs=-1; give a finite number at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        CONFIG(output_dir=str(tmp_path), **settings)


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
from conftest import make_args, make_model, make_tokenizer
from hf_unlearn import METHODS
config, trainer = METHODS["pdu"]
args = make_args(config, sys.argv[1], max_steps=4, ddp_backend="gloo", retain_weight=2.0, retain_loss_eps=4.0,
                 dual_step_size=3.0, dual_warmup_epochs=0, per_device_train_batch_size=1, learning_rate=0.0)
rows = lambda word: [{{"text": word + "!" * 3 * i}} for i in range(8)]
trainer = trainer(model=make_model(), args=args, forget_dataset=rows("secret"), retain_dataset=rows("common"),
                  processing_class=make_tokenizer())
trainer.train()
losses = [entry["retain/loss"] for entry in trainer.state.log_history if "retain/loss" in entry]
found = [trainer.dual, trainer.method_state(), losses]
open(f"{{sys.argv[1]}}-{{args.process_index}}.json", "w").write(json.dumps(found))
"""


def test_all_processes_have_one_variable(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(TESTS)))
    code, said = run(script, str(tmp_path / "two"), processes=2)
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2))
    assert first[:2] == second[:2]
    # By the losses of both, of rows that differ in length.
    assert first[0] == pytest.approx(by_hand(first[2], "step", 0, 4)[-1], rel=1e-4)
    assert torch.tensor(first[2]).std() > 0
