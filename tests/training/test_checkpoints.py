# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what a method keeps comes back, and only whole ones are resumed from."""

import json
import os
import shutil

import pytest
import torch
from conftest import changed, weights
from transformers.trainer_utils import get_last_checkpoint

from hf_unlearn import GATrainer, NPOTrainer
from hf_unlearn.training.checkpoints import COMPLETE, is_whole, last_whole
from hf_unlearn.training.method_state import METHOD_STATE, read_method_state, write_method_state


class Drifting(NPOTrainer):
    """A method with a state: a vector that moves with every batch and scales the loss, and a count."""

    def __init__(self, *args, **kwargs):
        self.pull, self.stage = torch.linspace(1, 2, 5, dtype=torch.float64), {"number": 0, "seen": []}
        super().__init__(*args, **kwargs)

    def forget_loss(self, rows):
        self.pull = self.pull * 1.25
        self.stage["number"] += 1
        self.stage["seen"].append(int(rows.batch["index"][0]))
        return super().forget_loss(rows) * self.pull[2].float()

    def method_state(self):
        return {"pull": self.pull, "stage": self.stage}

    def load_method_state(self, state):
        self.pull, self.stage = state["pull"], state["stage"]


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "optim": "sgd", "learning_rate": 0.1}


@pytest.fixture
def run(build, tmp_path):
    def run(name, resume=None, trainer_class=NPOTrainer, **kwargs):
        trainer = build(trainer_class, output_dir=tmp_path / name, **(SAVING | kwargs))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


# A method's state


def test_a_method_finds_its_state_again(run, build, tmp_path):
    whole = run("run", trainer_class=Drifting)
    assert whole.stage["number"] == 5
    part = run("run", str(tmp_path / "run" / "checkpoint-2"), Drifting)
    assert part.stage == whole.stage
    assert torch.equal(part.pull, whole.pull)
    assert part.pull.dtype == torch.float64
    assert not changed(weights(whole.model), weights(part.model))
    # The state is what did it.
    (tmp_path / "run" / "checkpoint-2" / METHOD_STATE).unlink()
    listed = tmp_path / "run" / "checkpoint-2" / COMPLETE
    found = json.loads(listed.read_text())
    del found["files"][METHOD_STATE]
    listed.write_text(json.dumps(found))
    forgetful = type("Forgetful", (Drifting,), {"load_method_state": lambda self, state: None})
    assert changed(weights(whole.model), weights(run("run", str(listed.parent), forgetful).model))


def test_the_state_is_there_before_the_optimizer(build, tmp_path, run):
    run("run", trainer_class=Drifting)
    told = []

    class Watching(Drifting):
        def load_method_state(self, state):
            told.append((self.optimizer, self.model_wrapped is self.model, sorted(state)))
            super().load_method_state(state)

    run("run", True, Watching)
    assert told == [(None, True, ["pull", "stage"])]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"empty": torch.zeros(0, 3), "one": torch.tensor(7), "half": torch.randn(4, 2).bfloat16().T},
        {"stage": "align", "steps": [1, 2.5, None, True], "nested": {"a": {"b": -1}}, "v": torch.ones(2) > 0},
    ],
)
def test_what_is_written_is_read(tmp_path, state):
    write_method_state(tmp_path, state)
    read = read_method_state(tmp_path)
    assert read.keys() == state.keys()
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == read[name].dtype
            assert torch.equal(value, read[name])
        else:
            assert value == read[name]


@pytest.mark.parametrize("value", [{1: "a"}, (1, 2), object(), float("nan"), [torch.ones(1)]])
def test_what_would_come_back_different_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"method_state: 'kept' is a \w+ that JSON does not give back"):
        write_method_state(tmp_path, {"kept": value})
    assert not (tmp_path / METHOD_STATE).exists()


def test_a_method_without_state_writes_no_file(run, tmp_path):
    run("run")
    assert not (tmp_path / "run" / "checkpoint-2" / METHOD_STATE).exists()
    assert read_method_state(tmp_path / "run" / "checkpoint-2") == {}


# Whole checkpoints


def damage_last(folder, how):
    last = folder / "checkpoint-5"
    if how == "unlisted":
        (last / COMPLETE).unlink()
    elif how == "missing":
        (last / "optimizer.pt").unlink()
    elif how == "short":
        with (last / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
    elif how == "list cut off":
        (last / COMPLETE).write_text((last / COMPLETE).read_text()[:50])


@pytest.mark.parametrize("how", ["unlisted", "missing", "short", "list cut off"])
def test_resume_passes_over_what_is_not_whole(run, tmp_path, how):
    whole = run("run")
    damage_last(tmp_path / "run", how)
    # What transformers by itself would take.
    assert get_last_checkpoint(str(tmp_path / "run")).endswith("checkpoint-5")
    assert last_whole(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")
    resumed = run("run", True)
    assert resumed.state.global_step == 5
    assert not changed(weights(whole.model), weights(resumed.model))
    assert is_whole(tmp_path / "run" / "checkpoint-5")


def test_a_damaged_checkpoint_that_is_named_is_refused(run, build, tmp_path):
    run("run")
    damage_last(tmp_path / "run", "short")
    trainer = build(output_dir=tmp_path / "run", **SAVING)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"checkpoint-5 is no whole checkpoint .* last whole one is .*checkpoint-4"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    assert not changed(before, weights(trainer.model))
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="no whole checkpoint in output_dir"):
        trainer.train(resume_from_checkpoint=True)


def test_what_a_killed_save_left_is_not_mixed_with_what_follows(run, tmp_path):
    run("run", max_steps=2)
    left = tmp_path / "run" / "checkpoint-4"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half")
    run("run", True, max_steps=4)
    assert is_whole(left)
    assert not (left / "model-00001-of-00002.safetensors").exists()


def test_an_older_checkpoint_goes_when_the_newer_is_whole(run, build, tmp_path, monkeypatch):
    trainer = build(output_dir=tmp_path / "run", **SAVING, save_total_limit=1)
    counts, replace = [], os.replace

    def look(source, target):
        # Later it is only brought up to date.
        if os.path.basename(target) == COMPLETE and not os.path.exists(target):
            counts.append(len(list((tmp_path / "run").glob("checkpoint-*"))))
        replace(source, target)

    monkeypatch.setattr("pathlib.os.replace", look)
    trainer.train()
    # At the moment when a checkpoint becomes whole, the one before is there still.
    assert counts == [1, 2, 2]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]
    assert trainer.args.save_total_limit == 1


def test_the_best_checkpoint_outlives_the_limit(build, tmp_path, forget_rows):
    trainer = build(
        # The rows by a name that says nothing of their role.
        given={"eval_dataset": {"asked": forget_rows}},
        output_dir=tmp_path / "run",
        **SAVING,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_asked_loss",
    )
    trainer.train()
    # The loss rises, so the first is the best.
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert is_whole(tmp_path / "run" / "checkpoint-2")


def test_a_checkpoint_of_other_steps_is_refused(run, build, tmp_path):
    run("run")
    trainer = build(output_dir=tmp_path / "run", **SAVING, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"made with 2 pairs a step, and this run has 4: .* product, .*, is 2\."):
        trainer.train(resume_from_checkpoint=True)
    same = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert run("run", str(tmp_path / "run" / "checkpoint-2"), **same).state.global_step == 5


def test_a_checkpoint_of_another_method_is_refused(run, build, tmp_path):
    run("run")
    (made,) = {json.loads(path.read_text())["method"] for path in (tmp_path / "run").glob("*/complete.json")}
    other = NPOTrainer if made == "ga" else GATrainer
    trainer = build(other, output_dir=tmp_path / "run", **SAVING)
    with pytest.raises(ValueError, match=f"was made by method '{made}', and this run's is '{other.method}'"):
        trainer.train(resume_from_checkpoint=True)
