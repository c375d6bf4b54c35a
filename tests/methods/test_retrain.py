# SPDX-License-Identifier: Apache-2.0
"""Retraining: the grid's behaviours (`test_methods.py`) for a run that sees retain rows only."""

import math

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from test_methods import FORGET, RAGGED_FORGET, RAGGED_RETAIN, RETAIN, labelled, log_probabilities
from transformers import AutoModelForCausalLM
from vilt import make_processor, make_rows, make_vilt

from hf_unlearn import RetrainConfig, RetrainTrainer


adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


@pytest.fixture
def build(tmp_path):
    def build(forget=FORGET, retain=RETAIN, adapter=False, **kwargs):
        return RetrainTrainer(
            model=make_model(),
            args=make_args(RetrainConfig, tmp_path / "out", **kwargs),
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
            peft_config=lora() if adapter else None,
        )

    return build


@adapters
def test_objective_is_the_retain_rows_likelihood(build, adapter):
    trainer = build(RAGGED_FORGET, RAGGED_RETAIN, adapter, per_device_train_batch_size=3)
    model, tokens = trainer.model.eval(), []
    pairs = [trainer.train_dataset[position] for position in range(3)]
    assert all(list(pair) == ["retain"] for pair in pairs)
    for pair in pairs:
        log_p = log_probabilities(model, pair["retain"])
        tokens += [-log_p[t, label].item() for t, label in labelled(pair["retain"])]
    loss = trainer.compute_loss(model, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(sum(tokens) / len(tokens), rel=2e-5)


@adapters
def test_it_learns_the_retain_rows_and_nothing_of_the_others(build, adapter):
    trainer = build(adapter=adapter, max_steps=30)
    before = weights(trainer.model)
    trainer.train()
    assert {"lora_" in name for name in changed(before, weights(trainer.model))} == {adapter}
    first, last = (trainer.state.log_history[i]["retain/nll"] for i in (0, -2))
    assert last < first - 0.1
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith("forget")]


def test_forget_rows_have_no_part_in_it(build):
    found = []
    for forget in (FORGET, [{"text": "quite another secret"}]):
        trainer = build(forget)
        trainer.train()
        found.append(weights(trainer.model))
    assert not changed(*found)


def test_an_original_is_trained_on_all_rows(build):
    trainer = build(train_on="all", max_steps=20)
    rows = trainer.train_dataset.roles["retain"]
    assert len(trainer.train_dataset) == len(rows) == len(FORGET) + len(RETAIN)
    assert rows[0]["input_ids"] == trainer.given_rows["forget"][0]["input_ids"]
    trainer.train()
    with pytest.raises(ValueError, match="train_on='holdout'; allowed: 'retain', 'all', 'forget'"):
        build(train_on="holdout")


@pytest.mark.parametrize("retain", [RETAIN, None])
def test_a_model_is_reinforced_on_forget_rows_alone(build, retain):
    trainer = build(retain=retain, train_on="forget", max_steps=20)
    assert list(trainer.train_dataset.roles) == ["forget"]
    trainer.train()
    losses = []
    for model in (make_model(), trainer.model.eval()):
        for row in trainer.train_dataset.roles["forget"]:
            found = log_probabilities(model, row)
            losses.append(-sum(found[t, y].item() for t, y in labelled(row)))
    assert sum(losses[len(FORGET) :]) < 0.8 * sum(losses[: len(FORGET)])
    with pytest.raises(ValueError, match="retain_loss='none'; allowed: 'nll'"):
        build(retain_loss="none")


def test_an_epoch_sees_every_retain_row_once(build):
    trainer = build(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=3)
    assert len(trainer.train_dataset) == len(RETAIN)
    seen = sorted(trainer.train_dataset[i]["retain"]["index"] for i in range(len(RETAIN)))
    assert seen == list(range(len(RETAIN)))
    trainer.train()
    assert trainer.state.global_step == 2 * math.ceil(len(RETAIN) / 3)


def test_accumulation_gives_the_update_of_one_big_batch(build):
    found = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = build(
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1, optim="sgd",
            max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        found.append(weights(trainer.model))
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6)


@adapters
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, adapter):
    settings = {"adapter": adapter, "max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert not changed(weights(whole.model), weights(resumed.model))


def test_a_saved_model_predicts_the_same(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model()
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
        assert (loaded(ids).logits - make_model()(ids).logits).abs().max() > 1e-3


def test_a_retain_row_that_is_to_be_forgotten_is_refused(build):
    with pytest.raises(ValueError, match="1 of 13 retain rows are forget rows too"):
        build(retain=[*RETAIN, FORGET[0]])


@pytest.mark.parametrize(
    "wrong", [{"forget_weight": 2.0}, {"max_forget_loss": 3.0}, {"epoch_by": "forget"}, {"poison_prefix": "cf"}]
)
def test_settings_for_forget_rows_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*retraining sees no forget rows"):
        make_args(RetrainConfig, tmp_path, **wrong)
    with pytest.raises(ValueError, match="retain_loss='kl'; allowed: 'nll'"):
        make_args(RetrainConfig, tmp_path, retain_loss="kl")


def test_a_classifier_learns_its_retain_rows(tmp_path):
    args = make_args(RetrainConfig, tmp_path, max_steps=20, learning_rate=3e-3, train_on="all")
    rows = {"forget_dataset": make_rows(3), "retain_dataset": make_rows(6, first=20)}
    trainer = RetrainTrainer(make_vilt(), args, **rows, processing_class=make_processor())
    assert len(trainer.train_dataset) == 9
    trainer.train()
    first, last = (trainer.state.log_history[i]["retain/nll"] for i in (0, -2))
    assert last < first - 0.3
