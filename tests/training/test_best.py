# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint: which way a metric is better, and whether it will be there, before anything is trained."""

import math
import os
import shutil
import signal

import pytest
from conftest import changed, make_args, weights
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_unlearn import GAConfig
from hf_unlearn.audit import Audit, MetricResult
from hf_unlearn.training.callbacks import AuditCallback
from hf_unlearn.training.faults import Terminated


CHOOSING = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "optim": "sgd",
    "learning_rate": 0.1,
}


@pytest.fixture
def choose(build, forget_rows, retain_rows):
    def choose(metric=None, **more):
        sets = {"forget": forget_rows, "retain": retain_rows, "forget_paraphrased": forget_rows, "other": retain_rows}
        given = {"eval_dataset": sets, **more.pop("given", {})}
        return build(given=given, metric_for_best_model=metric, **(CHOOSING | more))

    return choose


def losses(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


@pytest.mark.parametrize("metric", ["eval_forget_loss", "forget_loss", "eval_forget_paraphrased_loss"])
def test_of_forget_rows_the_highest_loss_is_the_best(choose, metric):
    trainer = choose(metric)
    trainer.train()
    found = losses(trainer, metric if metric.startswith("eval_") else f"eval_{metric}")
    assert found[4] > found[1]
    assert trainer.state.best_global_step == max(found, key=found.get) == 4


@pytest.mark.parametrize("metric", ["eval_retain_loss", "eval_other_loss"])
def test_of_all_others_the_lowest(choose, metric):
    trainer = choose(metric)
    trainer.train()
    found = losses(trainer, metric)
    assert trainer.state.best_global_step == min(found, key=found.get)
    assert len(set(found.values())) == 4


def test_what_no_checkpoint_is_of_is_not_the_best(choose):
    trainer = choose("eval_retain_loss", save_steps=2)
    trainer.train()
    found = losses(trainer, "eval_retain_loss")
    assert min(found, key=found.get) == 1
    assert trainer.state.best_global_step == 2
    assert trainer.evaluate()["eval_retain_loss"] == pytest.approx(found[2], abs=1e-5)


class EndAt(TrainerCallback):
    """An error after the last step, when all is saved."""

    def on_train_end(self, args, state, control, **kwargs):
        raise MemoryError("no memory left")


@pytest.mark.parametrize("place", ["moved", "other output_dir", "gone"])
def test_the_best_checkpoint_is_found_where_it_is_now(choose, tmp_path, place):
    whole = choose("eval_retain_loss", output_dir=tmp_path / "whole")
    whole.train()
    assert whole.state.best_global_step == 1
    broken = choose("eval_retain_loss", output_dir=tmp_path / "then", given={"callbacks": [EndAt()]})
    with pytest.raises(MemoryError):
        broken.train()
    if place != "other output_dir":
        (tmp_path / "then").rename(tmp_path / "now")
    resumed = choose("eval_retain_loss", output_dir=tmp_path / "now")
    if place == "gone":
        shutil.rmtree(tmp_path / "now" / "checkpoint-1")
        with pytest.raises(ValueError, match="checkpoint-1, the best by eval_retain_loss, is not whole"):
            resumed.train(resume_from_checkpoint=True)
        return
    resumed.train(resume_from_checkpoint=True if place == "moved" else str(tmp_path / "then" / "checkpoint-4"))
    assert not changed(weights(whole.model), weights(resumed.model))


class Terminate(TrainerCallback):
    """SIGTERM in a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [2, 4])
def test_the_evaluation_that_sigterm_left_out_is_made_by_who_goes_on(choose, tmp_path, step):
    whole = choose("eval_forget_loss", output_dir=tmp_path / "whole")
    whole.train()
    assert whole.state.best_global_step == 4
    ended = choose("eval_forget_loss", given={"callbacks": [Terminate(step)]})
    with pytest.raises(Terminated):
        ended.train()
    resumed = choose("eval_forget_loss")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed, "eval_forget_loss") == losses(whole, "eval_forget_loss")
    assert resumed.state.best_global_step == 4
    assert not changed(weights(whole.model), weights(resumed.model))


@pytest.mark.parametrize("how", ["best", "stops"])
def test_whoever_reads_the_metric_reads_it_the_same_way(choose, how):
    settings = {"load_best_model_at_end": False, "save_strategy": "best" if how == "best" else "no"}
    given = {"callbacks": [EarlyStoppingCallback(early_stopping_patience=1)]} if how == "stops" else {}
    trainer = choose("eval_forget_loss", given=given, **settings)
    trainer.train()
    # It rises all the way: no step is worse than the one before.
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == losses(trainer, "eval_forget_loss")[4]


@pytest.mark.parametrize(("metric", "greater"), [("eval_forget_loss", False), ("eval_retain_loss", True)])
def test_the_wrong_way_is_refused(choose, metric, greater):
    with pytest.raises(ValueError, match=f"greater_is_better={greater} .* would keep the worst checkpoint"):
        choose(metric, greater_is_better=greater)
    assert choose(metric, greater_is_better=not greater).args.greater_is_better is not greater


@pytest.mark.parametrize(
    "metric", [None, "eval_loss", "forget_los", "eval_rouge", "eval_forget_runtime", "eval_retain_steps_per_second"]
)
def test_a_metric_that_nothing_reports_is_refused_before_the_model_is_loaded(choose, monkeypatch, metric):
    monkeypatch.setattr("hf_unlearn.modeling.load_model", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="no evaluation reports that. It reports eval_forget_loss, eval_retain_loss"):
        choose(metric)


def test_one_set_reports_one_loss(build, forget_rows):
    assert build(given={"eval_dataset": forget_rows}, **CHOOSING).args.greater_is_better is False
    with pytest.raises(ValueError, match="It reports nothing: no eval_dataset"):
        build(metric_for_best_model="eval_forget_loss", **CHOOSING)


def test_metrics_of_the_users_own_are_his(choose, build, forget_rows):
    class Adds(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_mine"] = -state.global_step

    for given in ({"callbacks": [Adds()]}, {"compute_metrics": lambda found: {"mine": 1.0}}):
        assert choose("eval_mine", given=given).args.greater_is_better is True
    trainer = choose("eval_mine", given={"callbacks": [Adds()]}, greater_is_better=False)
    trainer.train()
    assert trainer.state.best_global_step == 4


@pytest.mark.parametrize("callback", [EarlyStoppingCallback(), EarlyStoppingCallback])
def test_early_stopping_says_what_it_lacks(build, forget_rows, callback):
    given = {"callbacks": [callback], "eval_dataset": {"forget": forget_rows}}
    with pytest.raises(ValueError, match="EarlyStoppingCallback reads metric_for_best_model, and there is none"):
        build(given=given, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="is looked at in evaluations, and eval_strategy='no'"):
        build(given=given, metric_for_best_model="eval_forget_loss")


# Audits


def with_audit(choose, values, metric, at_start=True, known=None, **more):
    directions = {"probability": "lower", "rouge": "none", "ks": "closer_to_retrained"}
    values = iter(values)

    def audit(model, accelerator):
        value = next(values)
        return Audit({f"forget/{n}": MetricResult(n, value, 4, way) for n, way in directions.items()}, [])

    trainer = choose(metric, **more)
    known = audit(None, None) if known else None
    trainer.add_callback(AuditCallback(trainer, audit, at_start, at_evaluation=True, known=known))
    return trainer


@pytest.mark.parametrize(("at_start", "known"), [(True, False), (False, True), (False, False)])
def test_an_audits_metric_says_which_way_is_better(choose, at_start, known):
    values = [0.9] * (at_start or known) + [0.5, 0.1, 0.7, 0.6, 0.1]
    trainer = with_audit(choose, values, "eval_forget/probability", at_start, known)
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (2, 0.1)


@pytest.mark.parametrize(("at_start", "known"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("eval_forget/probabilty", "no evaluation reports that. It reports .*, eval_forget/probability"),
        ("eval_forget/ks", "has no direction: .* Take one of: .*, eval_forget/probability"),
        ("eval_forget/rouge", "has no direction"),
    ],
)
def test_an_audits_metric_is_checked_before_the_first_step(choose, metric, said, at_start, known):
    trainer = with_audit(choose, [0.5] * 9, metric, at_start, known)
    with pytest.raises(ValueError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_undefined_value_is_never_the_best(choose):
    trainer = with_audit(choose, [0.9, None, 0.4, None, 0.6, 0.4], "eval_forget/probability")
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (2, 0.4)
    assert not any(isinstance(v, float) and math.isnan(v) for e in trainer.state.log_history for v in e.values())


# Arguments


@pytest.mark.parametrize("none", [{"save_strategy": "no"}, {"eval_strategy": "no"}, {}])
def test_a_best_model_needs_checkpoints_and_evaluations(tmp_path, none):
    strategies = {"save_strategy": "no", "eval_strategy": "no"} if not none else none
    settings = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1} | strategies
    with pytest.raises(ValueError):
        make_args(GAConfig, tmp_path, load_best_model_at_end=True, **settings)
    if not none:
        with pytest.raises(ValueError, match="save_strategy='no': there would be no best checkpoint to load"):
            make_args(GAConfig, tmp_path, load_best_model_at_end=True, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_device_train_batch_size", 0),
        ("per_device_train_batch_size", -1),
        ("per_device_eval_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("data_seed", -3),
        ("data_seed", 2**32 + 5),
        ("max_steps", 0),
        ("fp16", True),
        ("report_to", "wandbb"),
        ("report_to", ["tensorbord"]),
    ],
)
def test_arguments_that_no_run_can_have_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        make_args(GAConfig, tmp_path, **{name: value})


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    with pytest.raises(ValueError, match="report_to='comet_ml': its package is not installed"):
        make_args(GAConfig, tmp_path, report_to="comet_ml")
    assert make_args(GAConfig, tmp_path, report_to="none").report_to == []


def test_no_epochs_are_no_training(tmp_path):
    with pytest.raises(ValueError, match="num_train_epochs=0 trains nothing"):
        make_args(GAConfig, tmp_path, max_steps=-1, num_train_epochs=0)
    assert make_args(GAConfig, tmp_path, max_steps=3, num_train_epochs=0).max_steps == 3


def test_a_batch_that_would_be_dropped_is_told(build, forget_rows):
    with pytest.raises(ValueError, match=r"an epoch has 4 pairs, fewer than the 5 of one batch"):
        build(dataloader_drop_last=True, per_device_train_batch_size=5)
    trainer = build(dataloader_drop_last=True, given={"eval_dataset": forget_rows}, per_device_eval_batch_size=3)
    # Of an evaluation nothing is dropped.
    assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader()) == 4
    assert trainer.args.dataloader_drop_last
    assert (
        "eval_loss"
        in build(
            dataloader_drop_last=True, given={"eval_dataset": forget_rows}, per_device_eval_batch_size=8
        ).evaluate()
    )
