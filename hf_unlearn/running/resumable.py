# SPDX-License-Identifier: Apache-2.0
"""A trainer that can be killed at any moment and go on: whole checkpoints, SIGTERM, losses that are not finite."""

import os
from typing import Any, ClassVar

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..adapter_files import saved_alone
from .checkpoints import find_checkpoint, seconds_until, written_whole
from .finite import FiniteCheck
from .meters import Meters
from .method_state import read_method_state
from .preemption import SaveOnSigterm
from .stopwatch import Stopwatch


class ResumableTrainer(Trainer):
    """[`~transformers.Trainer`] whose checkpoints are whole or not there, and that ends where it should.

    Attributes:
        stopwatch ([`Stopwatch`]): how long training took, what came before a checkpoint included.
        method (`str`): a subclass's; checkpoints of one method are no other's.
    """

    method: ClassVar[str]

    def watch_faults(self, meters: Meters) -> None:
        """Called once the trainer is set up, when its other callbacks are there: these have the last word.

        Args:
            meters ([`Meters`]): gets every loss by name.
        """
        self.stopwatch = Stopwatch()
        self._on_sigterm = SaveOnSigterm(self)
        self.add_callback(self._on_sigterm)
        self.add_callback(FiniteCheck(self, meters))

    def method_state(self) -> dict[str, Any]:
        """What the method must find again on resume beside weights and optimizer: tensors and JSON values by name, the
        same on every process. Asked for on all processes at every checkpoint."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes what `method_state` gave when the checkpoint was made, tensors on the CPU; called on all processes,
        before the model is wrapped and its optimizer made."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As [`~transformers.Trainer.train`], from whole checkpoints only.

        Raises:
            `ValueError`: if there is no such checkpoint, or it is not whole.
            [`NonFiniteError`]: if a loss or the weights are not finite.
            [`Terminated`]: after SIGTERM, when a checkpoint is saved.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args, self.method)
        if checkpoint is not None:
            self.load_method_state(read_method_state(checkpoint))
        self.stopwatch.start(0.0 if checkpoint is None else seconds_until(checkpoint))
        try:
            with self._on_sigterm.listening():
                return super().train(checkpoint, *args, **kwargs)
        finally:
            self.stopwatch.stop()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As [`~transformers.Trainer.evaluate`]; it takes no training time."""
        with self.stopwatch.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with written_whole(self, folder):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        with saved_alone(self.model, output_dir or self.args.output_dir, self.args.should_save):
            super()._save(output_dir, state_dict)

    def _run_epoch(self, *args, **kwargs) -> None:
        # Resumed from the checkpoint of the last step, Trainer would take one step more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
            self._on_sigterm.after_epoch()
