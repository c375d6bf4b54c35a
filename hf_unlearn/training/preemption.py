# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, by which clusters announce that they take a machine away: a checkpoint is saved, and the run ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

from .checkpoints import last_whole
from .faults import Terminated


logger = logging.getLogger(__name__)


class _Interrupted(BaseException):
    """SIGTERM came where nothing has to be waited for."""


@contextmanager
def ends_at_once(several: bool) -> Iterator[None]:
    """Inside, SIGTERM raises [`Terminated`]: everything is saved, and what is being done can be done again.

    Args:
        several (`bool`): there are other processes, for which this one may be waiting where Python handles no signal.
            SIGTERM then ends the process as it does any other's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        # What is done on the way out is not interrupted again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL if several else end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SaveOnSigterm(TrainerCallback):
    """After SIGTERM to any process, all of them end the step, save a checkpoint and raise [`Terminated`].

    Args:
        trainer ([`ResumableTrainer`]):
            The run.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.received = self.ending = self._obeys = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM is noted and not obeyed at once. Only a process's main thread can listen."""
        self.received = self.ending = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.received:
            self._end()

    def _note(self, number, frame):
        # Launchers pass on what they get themselves, so a second one says nothing new.
        self.received = True
        if self._obeys:
            self._obeys = False
            raise _Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, between two steps, SIGTERM is obeyed at once; on several processes, which are to stop together, with
        the next step."""
        if self.trainer.accelerator.num_processes > 1:
            yield
            return
        try:
            self._obeys = True
            if self.received:
                raise _Interrupted
            yield
        except _Interrupted:
            self._obeys = False
            self.trainer.check_finite()
            self._save_and_end()
        finally:
            self._obeys = False

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_received():
            last, at_end_of_epoch = self.trainer.last_step, float(state.epoch or 0).is_integer()
            last.stopped = control.should_training_stop and state.global_step < state.max_steps
            self.ending = control.should_save = control.should_training_stop = True
            # Who terminates does not wait for long: who goes on evaluates.
            last.evaluation_due = control.should_evaluate or (args.eval_strategy == "epoch" and at_end_of_epoch)
            control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        if self.ending:
            self._end()

    def after_epoch(self) -> None:
        """Called on all processes when an epoch is over: what came after its last step found no step to end with."""
        if self._any_received():
            self._save_and_end()

    def _save_and_end(self) -> None:
        # Of a step that is saved already, what was logged since.
        if self.trainer.last_step.stepped:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        self._end()

    def _end(self) -> None:
        state, last = self.trainer.state, last_whole(self.trainer.args.output_dir)
        if state.is_world_process_zero and last is None:
            logger.warning("SIGTERM: stopped after step %d of %d.", state.global_step, state.max_steps)
        elif state.is_world_process_zero:
            logger.warning(
                "SIGTERM: stopped after step %d of %d and saved %s. The same command with "
                "`--resume_from_checkpoint last` (in Python: `train(resume_from_checkpoint=True)`) goes on there.",
                state.global_step,
                state.max_steps,
                last,
            )
        raise Terminated

    def _any_received(self) -> bool:
        if self.trainer.accelerator.num_processes == 1:
            return self.received
        # Signals reach processes at different steps, and a checkpoint is made by all at the same.
        received = torch.tensor(float(self.received), device=self.trainer.args.device)
        return self.trainer.accelerator.reduce(received, reduction="sum").item() > 0
