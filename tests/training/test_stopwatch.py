# SPDX-License-Identifier: Apache-2.0
"""Seconds of training: those of the steps that made the result, over all parts of a run."""

import pytest
from transformers import TrainerCallback

from hf_unlearn import NPOTrainer
from hf_unlearn.audit import Audit
from hf_unlearn.training import stopwatch
from hf_unlearn.training.callbacks import AuditCallback
from hf_unlearn.training.stopwatch import Stopwatch


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}


class Clock:
    """Time that passes only where a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class StepsTake(TrainerCallback):
    """Every step takes so many seconds; before step `killed_at` is over, the process is gone."""

    def __init__(self, clock: Clock, seconds: float, killed_at: int | None = None):
        self.clock, self.seconds, self.killed_at = clock, seconds, killed_at

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.now += self.seconds
        if state.global_step + 1 == self.killed_at:
            raise KeyboardInterrupt


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "perf_counter", clock)
    return clock


def test_what_stands_apart_is_not_counted(clock):
    watch = Stopwatch()
    watch.start(before=7)
    clock.now += 1
    with watch.paused():
        clock.now += 10
        with watch.paused():
            clock.now += 100
        clock.now += 10
    clock.now += 2
    assert watch.seconds == 10
    watch.stop()
    clock.now += 5
    with watch.paused():
        clock.now += 5
    assert watch.seconds == 10


def test_seconds_add_up_over_resumes(build, clock):
    killed = build(NPOTrainer, {"callbacks": [StepsTake(clock, 1, killed_at=5)]}, **SAVING)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert killed.stopwatch.seconds == 5
    clock.now += 1000
    # Steps 1 to 4 are in the last checkpoint; the fifth was lost and is taken again, on a slower machine.
    resumed = build(NPOTrainer, {"callbacks": [StepsTake(clock, 3)]}, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopwatch.seconds == 4 + 3
    # From the start again, and once more from the checkpoint of the end, in which all is done.
    resumed.train()
    assert resumed.stopwatch.seconds == 5 * 3
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopwatch.seconds == 5 * 3


def test_audits_and_evaluations_take_no_training_time(build, clock, forget_rows):
    def audit(model, accelerator):
        clock.now += 100
        return Audit({}, [])

    class EvaluationsTake(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            clock.now += 1000

    given = {
        "eval_dataset": {"forget": forget_rows, "retain": forget_rows},
        "callbacks": [StepsTake(clock, 1), EvaluationsTake()],
    }
    trainer = build(NPOTrainer, given, max_steps=3, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(AuditCallback(trainer, audit, at_start=True, at_evaluation=True))
    start = clock.now
    trainer.train()
    assert clock.now - start > 6000
    assert trainer.stopwatch.seconds == 3
