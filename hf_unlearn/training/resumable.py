# SPDX-License-Identifier: Apache-2.0
"""A trainer that can be killed at any moment and go on: whole checkpoints, SIGTERM, losses that are not finite."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch.distributed.fsdp import FSDPModule
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.adapter_files import saved_alone
from ..models.adapters import check_loads
from .best import check_best, known_metrics, reports_others
from .checkpoints import find_checkpoint, written_whole
from .finite import FiniteCheck
from .last_step import LastStep
from .meters import Meters
from .method_state import read_method_state
from .preemption import SaveOnSigterm
from .same_run import check_goes_on
from .stopwatch import Stopwatch


logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """[`~transformers.Trainer`] whose checkpoints are whole or not there, and that ends where it should.

    Attributes:
        stopwatch ([`Stopwatch`]): how long training took, what came before a checkpoint included.
        last_step ([`LastStep`]): the checkpoint that training ends with.
        stop_reason (`str`, *optional*): why training ended before its last step.
        method (`str`): a subclass's; checkpoints of one method are no other's.
    """

    method: ClassVar[str]
    stop_reason: str | None = None

    def watch_faults(self, meters: Meters) -> None:
        """Called once the trainer is set up, when its other callbacks are there: these have the last word.

        Args:
            meters ([`Meters`]): gets every loss by name.
        """
        self.stopwatch = Stopwatch()
        self._on_sigterm = SaveOnSigterm(self)
        self.add_callback(self._on_sigterm)
        self._finite = FiniteCheck(self, meters)
        self.add_callback(self._finite)
        # After the check: weights that are not finite are not saved.
        self.last_step = LastStep(self)
        self.add_callback(self.last_step)

    def method_state(self) -> dict[str, Any]:
        """What the method must find again on resume beside weights and optimizer: tensors and JSON values by name, the
        same on every process. Asked for on all processes at every checkpoint."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes what `method_state` gave when the checkpoint was made, tensors on the CPU; called on all processes,
        before the model is wrapped and its optimizer made."""

    def checkpoint_state(self) -> dict[str, Any]:
        """What goes into a checkpoint beside weights and optimizer: the method's, and what a subclass adds."""
        return self.method_state()

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Takes what `checkpoint_state` gave."""
        self.load_method_state(state)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As [`~transformers.Trainer.train`], from whole checkpoints only.

        Raises:
            `ValueError`: if there is no such checkpoint, or it is not whole.
            [`NonFiniteError`]: if a loss or the weights are not finite.
            [`Terminated`]: after SIGTERM, when a checkpoint is saved.
        """
        self.check_best()
        if resume_from_checkpoint or self.args.load_best_model_at_end:
            check_loads(self.model)
        checkpoint, facts = find_checkpoint(resume_from_checkpoint, self)
        if checkpoint is not None:
            self.load_checkpoint_state(read_method_state(checkpoint))
        self._goes_on_from = checkpoint, facts
        self.last_step.begin(checkpoint, facts)
        self.stop_reason = facts.get("stop_reason")
        self.stopwatch.start(facts.get("seconds", 0.0))
        try:
            with self._on_sigterm.listening():
                output = super().train(checkpoint, *args, **kwargs)
        finally:
            self.stopwatch.stop()
        if not self.last_step.outlives_training:
            self.last_step.tidy()
        return output

    def check_best(self) -> None:
        """Sets the direction of `metric_for_best_model`, or refuses it (see `best.py`)."""
        callbacks = self.callback_handler.callbacks
        check_best(self.args, known_metrics(self), reports_others(self), callbacks)

    @property
    def terminates(self) -> bool:
        """Whether SIGTERM ends this step."""
        return self._on_sigterm.ending

    def check_finite(self) -> None:
        """Raises [`NonFiniteError`] if a loss or the weights are not finite."""
        self._finite.check(with_weights=True)

    @contextmanager
    def auditing(self) -> Iterator[None]:
        """Inside, no training time counts, and SIGTERM waits for no step: what is done there can be done again."""
        with self.stopwatch.paused(), self._on_sigterm.at_once():
            yield

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As [`~transformers.Trainer.evaluate`]; it takes no training time."""
        with self.stopwatch.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        if self.last_step.saved == self.state.global_step:
            # Saved before its evaluation.
            self.last_step.update()
            return
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with written_whole(self, folder):
            super()._save_checkpoint(model, trial)
        self.last_step.saved = self.state.global_step

    def _evaluate(self, *args, **kwargs) -> dict[str, float]:
        # What ends it, such as SIGTERM in an audit, leaves it to the run that goes on.
        self.last_step.evaluation_due = True
        metrics = super()._evaluate(*args, **kwargs)
        self.last_step.evaluation_due = False
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        step, last = self.state.global_step, self.last_step
        is_kept = self.control.should_save or step in (last.saved, last.resumed)
        if self.args.load_best_model_at_end and self.args.save_strategy != "best" and not is_kept:
            # Trainer would remember that this step was the best, find no checkpoint of it, and end with the last step.
            return False
        return super()._determine_best_metric(metrics, trial)

    def _inner_training_loop(self, *args, **kwargs):
        if self.last_step.stepped:
            # `auto_find_batch_size` begins again, and not with the weights that training began with.
            raise ValueError(
                f"auto_find_batch_size: memory ran out after step {self.state.global_step}, and Trainer would begin "
                "again with weights that were trained already. Give a smaller per_device_train_batch_size "
                f"(now {self._train_batch_size}) and more gradient_accumulation_steps instead."
            )
        return super()._inner_training_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        with saved_alone(self.model, output_dir or self.args.output_dir, self.args.should_save):
            super()._save(output_dir, state_dict)

    def _run_epoch(self, *args, **kwargs) -> None:
        self._evaluate_what_is_due(kwargs.get("trial"))
        if self.last_step.stopped or self.state.global_step >= self.state.max_steps:
            # Resumed where training had ended, Trainer would take one step more.
            logger.info("Training had ended with step %d: no step is taken.", self.state.global_step)
            self.control.should_training_stop = True
            return
        if self._goes_on_from[0] is not None:
            check_goes_on(*self._goes_on_from)
        super()._run_epoch(*args, **kwargs)
        self._on_sigterm.after_epoch()

    def _evaluate_what_is_due(self, trial) -> None:
        """The evaluation of the step that a run goes on from, which ended before it was made or while it was."""
        due = self.last_step.evaluation_due and self.args.eval_strategy != "no"
        if due and self.last_step.resumed == self.state.global_step:
            self.state.log_history = [entry for entry in self.state.log_history if not self._is_last_evaluation(entry)]
            self._determine_best_metric(self._evaluate(trial, None), trial)
            self.last_step.update()

    def _is_last_evaluation(self, logged: dict[str, float]) -> bool:
        return logged["step"] == self.state.global_step and any(name.startswith("eval_") for name in logged)

    def _load_best_model(self) -> None:
        # FSDP2 leaves the root's weights whole after a forward without a backward, and loads only into sharded ones.
        for module in self.model_wrapped.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        super()._load_best_model()

    def _finalize_training(self, trial, *args, **kwargs):
        self._evaluate_what_is_due(trial)
        self.last_step.save()
        # Trainer would delete the last checkpoint here where another one is the best.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
