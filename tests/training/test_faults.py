# SPDX-License-Identifier: Apache-2.0
"""What ends a run before its time: losses and weights that are not finite, and SIGTERM."""

import json
import logging
import os
import signal
import threading

import pytest
import torch
from conftest import changed, make_model, weights
from transformers import TrainerCallback

from hf_unlearn import GATrainer, NPOTrainer
from hf_unlearn.cli.main import run_guarded
from hf_unlearn.training.checkpoints import is_whole, last_whole
from hf_unlearn.training.faults import NonFiniteError, Terminated
from hf_unlearn.training.finite import FiniteCheck, weights_finite


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 9}


class Faulty(NPOTrainer):
    """The forget or the retain term of one batch is replaced."""

    at, role, value = 0, "forget", float("nan")

    def faulty(self, role, term):
        self.batches = getattr(self, "batches", 0) + (role == "forget")
        return term * self.value if role == self.role and self.batches == self.at else term

    def forget_loss(self, rows):
        return self.faulty("forget", super().forget_loss(rows))

    def retain_loss(self, rows):
        return self.faulty("retain", super().retain_loss(rows))


def faulty(at, role="forget", value=float("nan")):
    return type("Faulty", (Faulty,), {"at": at, "role": role, "value": value})


# Not finite


@pytest.mark.parametrize(("role", "value"), [("forget", float("nan")), ("retain", float("inf"))])
@pytest.mark.parametrize("logging_steps", [1, 50])
def test_training_stops_with_step_component_and_last_good_checkpoint(build, tmp_path, role, value, logging_steps):
    trainer = build(faulty(4, role, value), retain_loss="nll", logging_steps=logging_steps, **SAVING)
    with pytest.raises(NonFiniteError) as stop:
        trainer.train()
    good = str(tmp_path / "out" / "checkpoint-2")
    # A checkpoint was due at step 4. That was noticed before it was written, and at the latest then.
    assert f"at step 4 {role}/loss became infinite or undefined" in str(stop.value)
    assert f"The last good checkpoint is {good}." in str(stop.value)
    assert trainer.state.global_step == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
    assert last_whole(tmp_path / "out") == good


def test_the_step_is_the_first_bad_one_whenever_it_is_noticed(build, tmp_path):
    trainer = build(faulty(2), logging_steps=7, max_steps=9)
    with pytest.raises(NonFiniteError, match=r"at step 2 forget/loss .* There is no checkpoint from before"):
        trainer.train()
    # Nobody looked before the log: no step waits for the device.
    assert trainer.state.global_step == 7


def test_one_bad_micro_batch_is_enough(build):
    trainer = build(faulty(4), gradient_accumulation_steps=2, per_device_train_batch_size=1, max_steps=5)
    with pytest.raises(NonFiniteError, match="at step 2 forget/loss became"):
        trainer.train()


def test_training_goes_on_from_the_last_good_checkpoint(build, tmp_path):
    with pytest.raises(NonFiniteError):
        build(faulty(4), **SAVING).train()
    resumed = build(**SAVING)
    resumed.train(resume_from_checkpoint=True)
    whole = build(output_dir=tmp_path / "whole", **SAVING)
    whole.train()
    assert not changed(weights(whole.model), weights(resumed.model))


class Spoil(TrainerCallback):
    """Makes a gradient infinite, as an overflow in the backward pass does: the loss of that step is finite."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = float("inf")


@pytest.mark.parametrize("last", [4, 3])
def test_bad_weights_are_not_saved_although_every_loss_was_finite(build, tmp_path, last):
    settings = SAVING | {"max_steps": last, "save_strategy": "steps" if last == 4 else "no", "max_grad_norm": 0.0}
    trainer = build(given={"callbacks": [Spoil(last)]}, **settings)
    with pytest.raises(NonFiniteError, match=f"at step {last} the weights became"):
        trainer.train()
    assert not (tmp_path / "out" / f"checkpoint-{last}").exists()


def test_the_check_of_weights_sees_every_trained_one_and_no_other():
    model = make_model()
    assert weights_finite(model)
    with torch.no_grad():
        model.model.norm.weight[-1] = float("-inf")
    assert not weights_finite(model)
    model.model.norm.weight.requires_grad_(False)
    assert weights_finite(model)


def test_losses_of_an_earlier_call_are_forgotten(build):
    trainer = build(faulty(2), max_steps=3)
    with pytest.raises(NonFiniteError):
        trainer.train()
    trainer.model.load_state_dict(make_model().state_dict())
    trainer.optimizer = None
    trainer.train()
    assert trainer.state.global_step == 3


def test_the_command_ends_in_one_line(build, capsys, monkeypatch):
    def diverge(argv):
        build(faulty(1), max_steps=1).train()

    assert run_guarded(diverge, []) == 1
    said = capsys.readouterr().err
    assert said.count("hf-unlearn: error: Stopped: at step 1 forget/loss") == 1
    assert "Traceback" not in said
    # Told by the first process for all.
    monkeypatch.setenv("RANK", "1")
    assert run_guarded(diverge, []) == 1
    assert "Stopped" not in capsys.readouterr().err


# SIGTERM


class Send(TrainerCallback):
    def __init__(self, step, event="on_step_begin"):
        self.step = step
        setattr(self, event, self.send)

    def send(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("strategy", ["no", "epoch", "steps"])
def test_sigterm_saves_and_says_how_to_go_on(build, tmp_path, caplog, strategy):
    before = signal.getsignal(signal.SIGTERM)
    settings = {"max_steps": 6, "save_strategy": strategy, "save_steps": 100, "lr_scheduler_type": "linear"}
    trainer = build(given={"callbacks": [Send(3)]}, **settings)
    with caplog.at_level(logging.WARNING), pytest.raises(Terminated) as end:
        trainer.train()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    saved = tmp_path / "out" / "checkpoint-3"
    assert is_whole(saved)
    assert f"stopped after step 3 of 6 and saved {saved}" in caplog.text
    assert "`--resume_from_checkpoint last`" in caplog.text
    # The curve so far is in the checkpoint, with all steps.
    log = json.loads((saved / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]

    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=True)
    whole = build(output_dir=tmp_path / "whole", **(settings | {"save_strategy": "no"}))
    whole.train()
    assert not changed(weights(whole.model), weights(resumed.model))


def test_sigterm_during_evaluation_ends_with_the_next_step(build, tmp_path, forget_rows):
    given = {"callbacks": [Send(2, "on_evaluate")], "eval_dataset": {"forget": forget_rows}}
    trainer = build(given=given, max_steps=6, eval_strategy="steps", eval_steps=1)
    with pytest.raises(Terminated):
        trainer.train()
    assert last_whole(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
    # The step that ended the run was not evaluated: who terminates does not wait.
    assert [entry["step"] for entry in trainer.state.log_history if "eval_forget_loss" in entry] == [1]


# After the last step no other notices it. What was saved last may be of that step, of an earlier one, or not there.
ENDS = [(s, e) for s in ("no", "epoch", "steps") for e in ("on_epoch_end", "on_evaluate")]
ENDS += [("epoch", "on_save"), ("steps", "on_save")]


@pytest.mark.parametrize(("strategy", "event"), ENDS)
def test_sigterm_after_the_last_step_is_not_lost(build, tmp_path, forget_rows, event, strategy, caplog):
    # 6 steps: an event at the end of step 6 finds step 7 to come.
    given = {"callbacks": [Send(7, event)], "eval_dataset": {"forget": forget_rows}}
    settings = {"max_steps": 6, "save_strategy": strategy, "save_steps": 6, "eval_strategy": "epoch"}
    trainer = build(given=given, **settings)
    with caplog.at_level(logging.WARNING), pytest.raises(Terminated):
        trainer.train()
    saved = tmp_path / "out" / "checkpoint-6"
    assert f"stopped after step 6 of 6 and saved {saved}" in caplog.text
    made = (saved / "complete.json").stat().st_mtime_ns
    resumed = build(given={"eval_dataset": {"forget": forget_rows}}, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert not changed(weights(trainer.model), weights(resumed.model))
    assert (saved / "complete.json").stat().st_mtime_ns == made


def test_sigterm_while_training_ends_its_work_is_not_lost(build):
    with pytest.raises(Terminated):
        build(given={"callbacks": [Send(4, "on_train_end")]}, max_steps=3).train()


def test_workers_of_the_loader_do_not_die_before_the_checkpoint(build, tmp_path):
    class SendToWorkers(TrainerCallback):
        def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
            if state.global_step == 1:
                import multiprocessing

                workers = multiprocessing.active_children()
                assert workers
                for process in (*[worker.pid for worker in workers], os.getpid()):
                    os.kill(process, signal.SIGTERM)

    rows = [{"text": f"secret {i}"} for i in range(60)]
    given = {"callbacks": [SendToWorkers()], "forget_dataset": rows}
    trainer = build(given=given, max_steps=6, dataloader_num_workers=1)
    with pytest.raises(Terminated):
        trainer.train()
    assert is_whole(tmp_path / "out" / "checkpoint-2")


def test_a_thread_trains_without_listening(build):
    before = signal.getsignal(signal.SIGTERM)
    trainer = build(GATrainer, max_steps=1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_check_waits_for_the_device_at_logs_only(build, tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        """Counts values handed from the device to Python."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def waits(steps, watched=True, **kwargs):
        mode = Waits()
        mode.count = 0
        trainer = build(output_dir=tmp_path / "out", max_steps=steps, logging_steps=100, **kwargs)
        if not watched:
            assert trainer.pop_callback(FiniteCheck) is not None
        with mode:
            trainer.train()
        return mode.count

    def a_step(**kwargs):
        return (waits(9, **kwargs) - waits(3, **kwargs)) / 6

    waits(1)  # The reference is computed and kept.
    assert a_step() == a_step(watched=False)
    # What Trainer's own filter of such losses, which is off, would cost.
    assert a_step() <= a_step(logging_nan_inf_filter=True) - 1
