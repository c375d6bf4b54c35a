# SPDX-License-Identifier: Apache-2.0
"""Where next to nothing happens a run says so, with the numbers and the setting; where something does it is quiet."""

import re
from types import SimpleNamespace

import pytest
from align_encoder import make_encoder, make_trainer

from hf_unlearn import GATrainer
from hf_unlearn.methods.align_then_unlearn.alignment_check import tell_rising
from hf_unlearn.training.term_balance import LOGS, TermBalance


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def aligned(folder, encoder, caplog, **settings) -> list[str]:
    """What a run of Align-then-Unlearn says of its head's alignment."""
    make_trainer(folder, encoder, **{"unlearn_steps": 1, **settings}).train()
    return [record.getMessage() for record in caplog.records if "hardly aligned" in record.getMessage()]


def test_a_head_that_learned_nothing_is_told_with_the_setting(tmp_path, encoder, caplog):
    first, second = aligned(tmp_path, encoder, caplog, head_learning_rate=1e-6)
    assert first.startswith("Round 1: the head is hardly aligned")
    assert "Raise `first_align_steps` (3) or `head_learning_rate` (1e-06)" in first
    assert second.startswith("Round 2")
    assert "Raise `align_steps` (2)" in second


def test_a_head_that_learned_is_not_told(tmp_path, encoder, caplog):
    settings = {"first_align_steps": 120, "align_steps": 30, "head_dropout": 0.0}
    assert aligned(tmp_path, encoder, caplog, **settings) == []


def test_a_stage_that_goes_on_after_a_resume_is_judged_by_what_is_left(tmp_path, encoder, caplog):
    settings = {"save_strategy": "steps", "save_steps": 2, "head_learning_rate": 1e-6, "unlearn_steps": 1}
    make_trainer(tmp_path, encoder, **settings).train()
    caplog.clear()
    make_trainer(tmp_path, encoder, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sum("hardly aligned" in record.getMessage() for record in caplog.records) == 2


def test_thresholds_that_rise_are_told(caplog):
    tell_rising([0.5])
    tell_rising([0.5, 0.4])
    assert not caplog.records
    tell_rising([0.6, 0.4, 0.45])
    assert "threshold of round 3 is a cosine of 0.45, above 0.4 of the round before" in caplog.text
    assert "Raise `align_steps`" in caplog.text


def test_rounds_tell_a_threshold_that_rises(tmp_path, encoder, caplog, monkeypatch):
    trainer = make_trainer(tmp_path, encoder, threshold_mode="quantile", thresholds=[0.5, 0.4])
    found = iter([0.1, 0.3])
    monkeypatch.setattr(trainer.rounds, "_quantile", lambda *_: next(found))
    trainer.train()
    assert "threshold of round 2 is a cosine of 0.3, above 0.1" in caplog.text


# Terms


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "next to nothing is unlearned" in record.getMessage()]


@pytest.fixture
def run(build, caplog):
    """Trains GradDiff or another method, every step logged; returns what was told of its terms."""

    def run(**settings):
        trainer = build(GATrainer, **{"retain_loss": "nll", "logging_steps": 1, "max_steps": LOGS + 2, **settings})
        trainer.train()
        return told(caplog)

    return run


def test_a_forget_term_that_does_not_count_is_told_once(run):
    (message,) = run(forget_weight=1e-4)
    assert "Raise `forget_weight` (0.0001), or lower `retain_weight` (1)" in message
    forget, retain = map(float, re.search(r"forget term was (\S+) and the retain term (\S+),", message).groups())
    assert forget == pytest.approx(1e-4 * retain, rel=0.5)


def test_a_retain_term_that_outweighs_is_told(run):
    assert len(run(retain_weight=1e4)) == 1


@pytest.mark.parametrize("settings", [{}, {"retain_loss": "none"}, {"retain_loss": "kl"}, {"forget_weight": 0.1}])
def test_terms_of_one_size_are_not_told(run, settings):
    assert run(**settings) == []


def test_a_forget_term_that_grows_is_not_told(caplog):
    args = SimpleNamespace(forget_weight=1.0, retain_weight=1.0)
    state = SimpleNamespace(is_world_process_zero=True)
    for terms, count in (([0.001 * 2**i for i in range(LOGS)], 0), ([0.001] * LOGS, 1), ([0.0] * LOGS, 2)):
        watch = TermBalance()
        watch.on_train_begin(args, state, None)
        for term in [*terms, 0.0]:
            watch.on_log(args, state, None, logs={"forget/loss": term, "retain/loss": 2.0})
            watch.on_log(args, state, None, logs={"loss": 1.0})
        assert len(told(caplog)) == count


def test_nothing_is_told_on_other_processes(caplog):
    watch, args = TermBalance(logs=1), SimpleNamespace(forget_weight=1.0, retain_weight=1.0)
    watch.on_log(args, SimpleNamespace(is_world_process_zero=False), None, {"forget/loss": 0.0, "retain/loss": 1.0})
    assert not told(caplog)
