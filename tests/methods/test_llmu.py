# SPDX-License-Identifier: Apache-2.0
"""LLMU beside its equation: the random answers of a row, all in a step, and the limit at which a run stops."""

import logging
import re

import pytest
from conftest import make_tokenizer, train_batch, weights

from hf_unlearn import METHODS


CONFIG, LLMU = METHODS["llmu"]
RETAIN = [{"prompt": f"What is {i}?", "completion": f" A thing{'.' * i}"} for i in range(7)]
GIVEN = {"retain_dataset": RETAIN}


def test_defaults_are_the_published_ones(tmp_path):
    args = CONFIG(output_dir=str(tmp_path))
    assert [args.weight_of(role) for role in ("forget", "alternate", "retain")] == [0.5, 1.0, 1.0]
    assert (args.num_alternates, args.max_forget_loss, args.retain_loss) == (5, 100.0, "kl")


@pytest.mark.parametrize("passes", ["one", "split", "packed", "auto"])
def test_a_step_reads_all_random_answers_of_its_rows(build, passes):
    trainer = build(LLMU, GIVEN, forward_passes=passes, reference="live")
    batch = train_batch(trainer, range(2))
    roles = [trainer.role_names[number] for number in batch["role"].tolist()]
    assert [roles.count(role) for role in ("forget", "retain", "alternate")] == [2, 2, 10]
    texts = [
        make_tokenizer().decode(ids[: mask.sum()], skip_special_tokens=True)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    answers = {row["completion"] for row in RETAIN}
    for number in range(2):
        own = texts[4 + 5 * number : 9 + 5 * number]
        prompt = texts[number].split("?")[0] + "?"
        assert len({*own}) == 5
        assert {text.removeprefix(prompt) for text in own} <= answers
    rows = trainer.role_rows(trainer.model.eval(), batch)
    terms = trainer.weighted_terms(trainer.model, batch)
    # Means over a row's tokens, then over rows, with the weights of the terms.
    others = rows["alternate"]
    means = [-part.mean().item() for part in others.token_logps.split(others.predicted.mask.sum(1).tolist())]
    assert len(means) == 10
    assert terms["alternate"].item() == pytest.approx(sum(means) / 10, rel=1e-4)
    assert terms["forget"].item() == pytest.approx(
        0.5 * rows["forget"].mean(rows["forget"].token_logps).item(), rel=1e-4
    )


def test_the_random_answers_are_learnt_and_the_forget_answers_are_not(build):
    trainer = build(LLMU, GIVEN, max_steps=6, learning_rate=3e-3)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[5]
    assert last["alternate/nll"] < first["alternate/nll"]
    assert last["forget/nll"] > first["forget/nll"]
    assert {"alternate/loss", "forget/loss", "retain/loss"} <= {*last}


def test_a_run_stops_at_the_limit_is_saved_says_so_and_does_not_go_on(build, tmp_path, caplog):
    # The published code compares the negative of the loss with the limit, and never stops.
    settings = {"max_steps": 30, "learning_rate": 3e-2, "save_strategy": "steps", "save_steps": 50}
    settings["max_forget_loss"] = 6.0
    first = build(LLMU, GIVEN, **settings)
    first.train()
    step = first.state.global_step
    assert 1 < step < 30
    reason = rf"Stopped at step {step}: the forget rows' loss is [\d.]+ nats a token, above max_forget_loss=6\.0"
    assert re.search(reason, caplog.text)
    first.save_model()
    assert first.stop_reason in (tmp_path / "out" / "README.md").read_text()
    again = build(LLMU, GIVEN, **settings)
    with caplog.at_level(logging.INFO):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == step
    assert again.stop_reason == first.stop_reason
    before, after = weights(first.model), weights(again.model)
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.usefixtures("unloaded")
def test_what_has_no_random_answers_is_refused_before_a_model_is_loaded(build, model_path):
    with pytest.raises(ValueError, match=r"takes answers of retain rows \(`completion`\), and they have the columns"):
        build(LLMU, {"model": model_path})
    with pytest.raises(ValueError, match="num_alternates=5, and there are 2 different answers of retain rows"):
        build(LLMU, {"model": model_path, "retain_dataset": RETAIN[:2]})
    with pytest.raises(ValueError, match="alternate_weight=-1; give a finite number at least 0"):
        build(LLMU, GIVEN, alternate_weight=-1)
