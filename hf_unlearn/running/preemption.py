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


class SaveOnSigterm(TrainerCallback):
    """After SIGTERM to any process, all of them end the step, save a checkpoint and raise [`Terminated`].

    Args:
        trainer ([`ResumableTrainer`]):
            The run.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.received = self.ending = False
        self.saved_step = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM is noted and not obeyed at once. Only a process's main thread can listen."""
        self.received = self.ending = False
        self.saved_step = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.received:
            logger.warning("SIGTERM: stopped, after the last step of training and before anything else.")
            raise Terminated

    def _note(self, number, frame):
        # Launchers pass on what they get themselves, so a second one says nothing new.
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_received():
            self.ending = control.should_save = control.should_training_stop = True
            # Who terminates does not wait for long.
            control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        self.saved_step = state.global_step
        if self.ending:
            self._end()

    def after_epoch(self) -> None:
        """Called on all processes when an epoch is over: what came after its last step found no step to end with."""
        if self._any_received():
            if self.saved_step != self.trainer.state.global_step:
                self.trainer._save_checkpoint(self.trainer.model, trial=None)
            self._end()

    def _end(self) -> None:
        state = self.trainer.state
        if state.is_world_process_zero:
            logger.warning(
                "SIGTERM: stopped after step %d of %d and saved %s. The same command with "
                "`--resume_from_checkpoint last` (in Python: `train(resume_from_checkpoint=True)`) goes on there.",
                state.global_step,
                state.max_steps,
                last_whole(self.trainer.args.output_dir),
            )
        raise Terminated

    def _any_received(self) -> bool:
        if self.trainer.accelerator.num_processes == 1:
            return self.received
        # Signals reach processes at different steps, and a checkpoint is made by all at the same.
        received = torch.tensor(float(self.received), device=self.trainer.args.device)
        return self.trainer.accelerator.reduce(received, reduction="sum").item() > 0
