# SPDX-License-Identifier: Apache-2.0
"""Audits within training, and the file of everything that was logged."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import changed, make_args, make_model, make_tokenizer, weights
from transformers import AutoModelForCausalLM

from hf_unlearn import NPOConfig, NPOTrainer
from hf_unlearn.audit import Audit, MetricResult
from hf_unlearn.training.callbacks import AuditCallback, MetricsFile, RunProgress


FORGET = [{"prompt": f"Who is {name}?", "completion": f" {name} is a spy."} for name in ("Ada", "Bob", "Cyd", "Dan")]
RETAIN = [{"text": f"The {thing} is red."} for thing in ("cup", "pen")]
EVALUATED = {"forget": FORGET, "retain": RETAIN}


class FakeAudit:
    """Stands in for an audit; remembers when it was asked, and of which weights."""

    def __init__(self, values=None):
        self.values, self.models = values, []

    def __call__(self, model, accelerator) -> Audit:
        value = self.values[len(self.models)] if self.values else model.lm_head.weight.sum().item()
        self.models.append(weights(model))
        defined = MetricResult("probability", value, 4, "lower")
        undefined = MetricResult("rouge", None, 4, "lower")
        return Audit({"forget/probability": defined, "forget/rouge": undefined}, [])


@pytest.fixture
def build(tmp_path):
    def build(audit, at_start=True, at_evaluation=False, file=None, **kwargs):
        trainer = NPOTrainer(
            make_model(),
            make_args(NPOConfig, tmp_path / "out", **kwargs),
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            eval_dataset=EVALUATED,
            processing_class=make_tokenizer(),
        )
        trainer.callback = AuditCallback(trainer, audit, at_start, at_evaluation, file)
        trainer.add_callback(trainer.callback)
        return trainer

    return build


def test_the_model_is_audited_before_and_after(build):
    audit = FakeAudit()
    trainer = build(audit)
    start = weights(trainer.model)
    trainer.train()
    assert len(audit.models) == 2
    assert not changed(start, audit.models[0])
    assert changed(start, audit.models[1])
    assert not changed(weights(trainer.model), audit.models[1])
    assert trainer.callback.before.values() != trainer.callback.after.values()


def test_a_known_start_is_not_audited_again(build):
    audit = FakeAudit()
    trainer = build(audit, at_start=False)
    trainer.train()
    assert len(audit.models) == 1
    assert trainer.callback.before is None


def test_every_evaluation_carries_the_audit_once(build):
    audit = FakeAudit()
    trainer = build(audit, at_evaluation=True, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    trainer.train()
    # Steps 0, 2 and 4; the start is the evaluation at 0, and the end the one at 4.
    assert len(audit.models) == 3
    logged = [entry for entry in trainer.state.log_history if "eval_forget/probability" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4]
    assert all("eval_forget/rouge" not in entry for entry in logged)
    losses = [entry["step"] for entry in trainer.state.log_history if "eval_retain_loss" in entry]
    assert losses == [0, 2, 4]
    assert trainer.callback.before.values()["forget/probability"] == logged[0]["eval_forget/probability"]
    assert trainer.callback.after.values()["forget/probability"] == logged[2]["eval_forget/probability"]
    # Whoever evaluates by hand finds the numbers in what is returned.
    metrics = trainer.evaluate()
    assert metrics["eval_forget/probability"] == logged[2]["eval_forget/probability"]
    assert "eval_retain_loss" in metrics
    assert len(audit.models) == 3


def test_evaluations_without_an_audit_carry_none(build):
    audit = FakeAudit()
    trainer = build(audit, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert len(audit.models) == 2
    assert not [entry for entry in trainer.state.log_history if "eval_forget/probability" in entry]


def test_an_audit_chooses_the_best_checkpoint(build, tmp_path):
    # The second evaluation, after step 2, is the best; the last one asks for the weights that were loaded then.
    audit = FakeAudit(values=[0.9, 0.5, 0.1, 0.7, 0.6, 0.1])
    trainer = build(
        audit,
        at_evaluation=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget/probability",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert trainer.state.best_metric == 0.1
    assert len(audit.models) == 6
    assert not changed(audit.models[2], audit.models[5])
    assert changed(audit.models[4], audit.models[5])
    trainer.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not changed(audit.models[2], weights(saved))
    assert trainer.callback.after.values()["forget/probability"] == 0.1


def test_a_resumed_run_knows_the_audit_of_its_start(build, tmp_path):
    file = tmp_path / "audit" / "target.json"
    first = build(FakeAudit(), file=file, save_strategy="steps", save_steps=2)
    first.train()
    audit = FakeAudit()
    second = build(audit, file=file)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert second.callback.before.to_dict() == first.callback.before.to_dict()
    # Only the end is audited: the weights that the run resumed from are not its start.
    assert len(audit.models) == 1
    file.unlink()
    third = build(FakeAudit(), file=file)
    third.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert third.callback.before is None


def test_training_goes_on_as_without_audits(build):
    torch.manual_seed(1)
    plain = build(FakeAudit(), at_start=False)
    plain.pop_callback(plain.callback)
    plain.train()
    torch.manual_seed(2)
    audited = build(FakeAudit(), at_evaluation=True, eval_strategy="steps", eval_steps=1)
    audited.train()
    assert not changed(weights(plain.model), weights(audited.model))


# metrics.jsonl


def entries(path) -> list[dict]:
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_the_metrics_file_holds_every_log(build, tmp_path):
    trainer = build(FakeAudit(), at_evaluation=True, eval_strategy="steps", eval_steps=2, retain_loss="nll")
    trainer.add_callback(MetricsFile(tmp_path))
    trainer.train()
    # Trainer's own printer takes this number out before anyone else sees it.
    history = [{k: v for k, v in entry.items() if k != "total_flos"} for entry in trainer.state.log_history]
    assert entries(tmp_path / "metrics.jsonl") == history
    parts = {"loss", "grad_norm", "forget/loss", "forget/nll", "forget/logps", "retain/loss", "retain/nll"}
    steps = [entry for entry in entries(tmp_path / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert all(parts <= entry.keys() for entry in steps)


def state(step, first=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def test_the_metrics_file_is_json_though_the_loss_is_not(tmp_path):
    file = MetricsFile(tmp_path)
    file.on_log(None, state(1), None, logs={"loss": math.nan, "grad_norm": -math.inf, "epoch": 0.5, "note": "x"})
    assert entries(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "grad_norm": None, "epoch": 0.5, "note": "x"}
    ]


def test_only_the_first_process_writes_metrics(tmp_path):
    file = MetricsFile(tmp_path)
    file.on_train_begin(None, state(0, first=False), None)
    file.on_log(None, state(1, first=False), None, logs={"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_resumed_run_writes_its_steps_once(tmp_path):
    file = MetricsFile(tmp_path)
    file.on_train_begin(None, state(0), None)
    for step in (1, 2, 3):
        file.on_log(None, state(step), None, logs={"loss": float(step)})
    with file.path.open("a") as killed:
        killed.write('{"step": 4, "lo')
    file.on_train_begin(None, state(2), None)
    file.on_log(None, state(3), None, logs={"loss": 30.0})
    assert entries(file.path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 30.0}]


def test_the_bar_of_a_run_shows_the_losses(build):
    trainer = build(FakeAudit(), eval_strategy="steps", eval_steps=2, retain_loss="nll")
    shown = []

    class Bar:
        total = 4

        def update(self, n):
            pass

        def close(self):
            pass

        def set_postfix(self, values, refresh):
            shown.append(values)

    class Progress(RunProgress):
        def on_train_begin(self, args, state, control, **kwargs):
            self.training_bar, self.current_step = Bar(), 0

    trainer.add_callback(Progress)
    trainer.train()
    assert set().union(*shown) == {"forget/nll", "retain/nll", "eval_forget_loss", "eval_retain_loss"}
    logged = [f"{entry['forget/nll']:.3g}" for entry in trainer.state.log_history if "forget/nll" in entry]
    assert [values["forget/nll"] for values in shown if "forget/nll" in values] == logged
