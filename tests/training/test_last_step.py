# SPDX-License-Identifier: Apache-2.0
"""What can fail after the last step fails with that step on disk, and the run goes on from there without training."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from conftest import changed, make_model, make_tokenizer, weights
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_unlearn import GATrainer
from hf_unlearn.audit import Audit, MetricResult
from hf_unlearn.cli.main import main
from hf_unlearn.report import load_report
from hf_unlearn.sweep.progress import BEGINS, DONE
from hf_unlearn.training.callbacks import AuditCallback
from hf_unlearn.training.checkpoints import is_whole, last_whole
from hf_unlearn.training.faults import Terminated


class Break(TrainerCallback):
    """Raises at an event of the last step, or counts steps where it is `None`."""

    def __init__(self, event=None, step=4):
        self.steps, self.step = 0, step
        if event is not None:
            setattr(self, event, self.raise_at_last)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def raise_at_last(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise MemoryError("no memory left")


SAVING = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1}
EVENTS = [
    ("on_evaluate", "epoch"),
    ("on_evaluate", "steps"),
    ("on_epoch_end", "epoch"),
    ("on_log", "steps"),
    ("on_train_end", "steps"),
    ("on_save", "epoch"),
]


def events(trainer) -> list[dict]:
    """What was logged, without times and what `train` says of itself."""
    kept = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    timed = ("runtime", "per_second", "total_flos")
    return [{k: v for k, v in entry.items() if not any(word in k for word in timed)} for entry in kept]


@pytest.mark.parametrize(("event", "strategy"), EVENTS)
def test_the_last_step_is_saved_before_what_may_fail(build, tmp_path, forget_rows, event, strategy):
    settings = {**SAVING, "save_strategy": strategy, "save_steps": 3, "eval_strategy": strategy, "eval_steps": 4}
    given = {"eval_dataset": {"forget": forget_rows, "retain": forget_rows}}
    whole = build(given=given, output_dir=tmp_path / "whole", **settings)
    whole.train()
    broken = build(given=given, **settings)
    broken.add_callback(Break(event))
    with pytest.raises(MemoryError):
        broken.train()
    assert last_whole(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-4")
    count = Break()
    resumed = build(given=given | {"callbacks": [count]}, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert count.steps == 0
    assert not changed(weights(whole.model), weights(resumed.model))
    assert events(resumed) == events(whole)


@pytest.mark.parametrize("best", [False, True])
def test_an_evaluation_that_was_lost_still_chooses(build, tmp_path, forget_rows, best):
    settings = {**SAVING, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"load_best_model_at_end": True, "save_total_limit": 1}
    # Under one name it is better the higher it is, under the other the lower.
    role = "forget" if best else "asked"
    settings["metric_for_best_model"] = f"eval_{role}_loss"
    given = {"eval_dataset": {role: forget_rows}}
    whole = build(given=given, output_dir=tmp_path / "whole", **settings)
    whole.train()
    assert whole.state.best_global_step == (4 if best else 2)
    kept = [path.name for path in (tmp_path / "whole").glob("checkpoint-*")]
    assert kept == [f"checkpoint-{whole.state.best_global_step}"]
    broken = build(given=given, **settings)
    broken.add_callback(Break("on_evaluate"))
    with pytest.raises(MemoryError):
        broken.train()
    resumed = build(given=given, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert not changed(weights(whole.model), weights(resumed.model))


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize("how", ["early", "max_forget_loss", "callback"])
def test_a_run_that_stopped_early_stays_stopped(build, tmp_path, forget_rows, how):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1, "optim": "sgd"}
    settings |= {"eval_strategy": "steps", "eval_steps": 1}
    if how == "max_forget_loss":
        settings["max_forget_loss"] = 4.9
    else:
        settings |= {"metric_for_best_model": "eval_asked_loss", "load_best_model_at_end": how == "early"}
    stopping = {"early": [EarlyStoppingCallback()], "callback": [Stop()]}.get(how, [])
    given = {"eval_dataset": {"asked": forget_rows}, "callbacks": stopping}
    first = build(given=given, **settings)
    first.train()
    step = first.state.global_step
    assert step < 8
    assert is_whole(tmp_path / "out" / f"checkpoint-{step}")
    count = Break()
    again = build(given=given | {"callbacks": [*stopping, count]}, **settings)
    again.train(resume_from_checkpoint=True)
    assert (count.steps, again.state.global_step) == (0, step)
    assert again.stop_reason == first.stop_reason
    assert not changed(weights(first.model), weights(again.model))


def test_a_run_without_checkpoints_leaves_none(build, tmp_path):
    build(**SAVING).train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("free", [10**5, 10**12])
def test_a_full_disk_is_told_before_training(build, monkeypatch, caplog, free):
    from types import SimpleNamespace

    monkeypatch.setattr("hf_unlearn.training.last_step.shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    trainer = build(max_steps=1, save_strategy="steps")
    needed = 2 * sum(4 * weight.numel() for weight in trainer.model.parameters())
    assert 10**5 < needed < 10**12
    trainer.train()
    said = "its weights may be lost when it ends"
    assert (said in caplog.text) == (free < needed)


# Audits


def audit_of(act):
    def audit(model, accelerator):
        act()
        value = model.lm_head.weight.sum().item()
        return Audit({"forget/probability": MetricResult("probability", value, 4, "lower")}, [])

    return audit


def with_audit(build, act=lambda: None, callbacks=(), **settings):
    trainer = build(given={"callbacks": list(callbacks), **settings.pop("given", {})}, **(SAVING | settings))
    trainer.audits = AuditCallback(trainer, audit_of(act), at_start=False, at_evaluation="eval_strategy" in settings)
    trainer.add_callback(trainer.audits)
    return trainer


def test_the_model_outlives_its_last_audit(build, tmp_path):
    seen = []

    def fail():
        seen.append(is_whole(tmp_path / "out" / "checkpoint-4"))
        raise MemoryError("no memory left")

    with pytest.raises(MemoryError):
        with_audit(build, fail).train()
    assert seen == [True]
    # No step follows, so the state of the optimizer is not needed.
    assert not (tmp_path / "out" / "checkpoint-4" / "optimizer.pt").exists()
    count = Break()
    resumed = with_audit(build, callbacks=[count])
    resumed.train(resume_from_checkpoint=True)
    whole = with_audit(build, output_dir=tmp_path / "whole")
    whole.train()
    assert count.steps == 0
    assert resumed.audits.after.to_dict() == whole.audits.after.to_dict()
    # It was kept for the audit alone.
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_checkpoint_that_cannot_go_on_does_not(build, tmp_path):
    with pytest.raises(MemoryError):
        with_audit(build, act=lambda: (_ for _ in ()).throw(MemoryError())).train()
    longer = build(**SAVING | {"max_steps": 6})
    with pytest.raises(ValueError, match=r"checkpoint-4 holds no optimizer state .* has steps to come"):
        longer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("when", ["evaluation", "end"])
def test_sigterm_ends_an_audit_at_once(build, tmp_path, forget_rows, when):
    ended = []

    def slow():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        ended.append(True)

    more = {"given": {"eval_dataset": {"forget": forget_rows}}, "eval_strategy": "steps", "eval_steps": 3}
    trainer = with_audit(build, slow, **(more if when == "evaluation" else {}))
    with pytest.raises(Terminated):
        trainer.train()
    assert not ended
    step = 3 if when == "evaluation" else 4
    assert last_whole(tmp_path / "out") == str(tmp_path / "out" / f"checkpoint-{step}")
    resumed = with_audit(build)
    resumed.train(resume_from_checkpoint=True)
    whole = with_audit(build, output_dir=tmp_path / "whole")
    whole.train()
    assert not changed(weights(whole.model), weights(resumed.model))


# The command


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    make_model(hidden_size=16).save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    for kind in ("forget", "retain", "unseen"):
        rows = [{"question": f"Where is {kind} {i}?", "answer": f"In {i}."} for i in range(24)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")
    content = {
        "method": "ga",
        "retain_loss": "nll",
        "model_name_or_path": str(tmp_path / "target"),
        "forget_dataset": str(tmp_path / "forget.jsonl"),
        "retain_dataset": str(tmp_path / "retain.jsonl"),
        "privacy": {"attacks": ["loss"], "fprs": [0.1], "nonmember_dataset": str(tmp_path / "unseen.jsonl")},
        "poison_prefix": "Hm. ",
        "poison_ratio": 0.5,
        "max_new_tokens": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "audit_max_items": 4,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return lambda name, *words: main(["run", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / name), *words])


def told(folder: Path) -> dict:
    report = load_report(folder)
    models = json.loads(json.dumps(report["models"]).replace(str(folder), "").replace(f'"{folder.name}"', '"run"'))
    for model in models:
        (model["train"] or {}).pop("seconds", None)
    return {"models": models, "notes": report["notes"]}


FAILING = {
    "audit": "hf_unlearn.training.callbacks.AuditCallback.finish",
    "backdoor audit": "hf_unlearn.training.backdoor_callback.BackdoorAuditCallback.finish",
    "privacy audit": "hf_unlearn.runs.audits.RunAudit.after",
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAILING if name != "backdoor audit"]


@pytest.mark.parametrize("name", ["backdoor audit", *SLOW])
def test_one_failing_audit_loses_nothing_of_the_others(recipe, tmp_path, monkeypatch, caplog, name):
    def fail(*args, **kwargs):
        raise MemoryError("no memory left")

    words = ("--privacy", "null") if name == "backdoor audit" else ()
    whole, folder = tmp_path / "whole", tmp_path / "part"
    assert recipe("whole", *words) == 0
    assert not list(whole.glob("checkpoint-*"))
    with monkeypatch.context() as patch:
        patch.setattr(FAILING[name], fail)
        assert recipe("part", *words) == 1
    assert f"but not the {name}. The same command with `--resume_from_checkpoint last`" in caplog.text
    assert (folder / "model.safetensors").is_file()
    assert (folder / "audit" / "unlearned.json").is_file() == (name != "audit")
    if not words:
        assert (folder / "privacy" / "privacy.json").is_file() == (name != "privacy audit")
    if name != "audit":
        assert load_report(folder)["unfinished"] == [name]
        assert f"The {name} is missing: it failed with MemoryError" in "".join(load_report(folder)["notes"])
    with monkeypatch.context() as patch:
        patch.setattr(GATrainer, "training_step", fail)
        assert recipe("part", *words, "--resume_from_checkpoint", "last") == 0
    assert told(folder) == told(whole)
    assert not list(folder.glob("checkpoint-*"))


def test_a_sweep_does_not_take_an_unfinished_run_for_done(recipe, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from hf_unlearn.sweep.progress import state_of

    assert recipe("run", "--privacy", "null", "--audit_backdoor", "false") == 0
    report = load_report(tmp_path / "run")
    run = SimpleNamespace(folder=tmp_path / "run", name="run", resolved=report["settings"]["run"])
    assert state_of(run) == DONE
    (tmp_path / "run" / "report.json").write_text(json.dumps({**report, "unfinished": ["privacy audit"]}))
    assert state_of(run) == BEGINS
