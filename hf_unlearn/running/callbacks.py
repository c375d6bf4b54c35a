# SPDX-License-Identifier: Apache-2.0
"""Trainer callbacks: audits before, during and after training, and a file of everything that was logged."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from ..audit import Audit
from ..files import write_text


class AuditCallback(TrainerCallback):
    """Audits the model where it stands in training, on all processes at once (so that sharded weights are there).

    Args:
        trainer ([`UnlearnTrainer`]):
            The run; metrics are logged through it.
        audit (`Callable[[Module, Accelerator], Audit]`):
            Audits a model; see [`~hf_unlearn.audit.audit_model`].
        at_start (`bool`):
            Audit the model before the first step.
        at_evaluation (`bool`):
            Audit at every evaluation and add `eval_<set>/<metric>` to its metrics, which may then choose the best
            checkpoint (`metric_for_best_model="eval_forget/probability"`).
        file (`str` or `Path`, *optional*):
            Where the audit before the first step is kept, so that a resumed run has it too.
    """

    def __init__(self, trainer, audit: Callable, at_start: bool = True, at_evaluation: bool = False, file=None):
        self.trainer, self.audit = trainer, audit
        self.at_start, self.at_evaluation = at_start, at_evaluation
        self.file = None if file is None else Path(file)
        self.before = self.after = None
        self._last = self._logged_at = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.at_start:
            return
        if state.global_step == 0:
            self.before = self._at(0)
            if self.file is not None and state.is_world_process_zero:
                self.before.save(self.file)
        elif self.file is not None and self.file.is_file():
            self.before = Audit.load(self.file)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.at_evaluation:
            return
        values = {f"eval_{k}": v for k, v in self._at(state.global_step).values().items() if v is not None}
        metrics.update(values)
        # Trainer evaluates several sets one by one and merges their metrics.
        if self._logged_at != state.global_step:
            self._logged_at = state.global_step
            self.trainer.log(values)

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end or self.trainer.changes_at_end:
            self._last = None
        self.after = self._at(state.global_step)

    def _at(self, step: int) -> Audit:
        """The audit of the weights at a step, made once."""
        if self._last is None or self._last[0] != step:
            with self.trainer.stopwatch.paused():
                self._last = step, self.audit(self.trainer.model, self.trainer.accelerator)
        return self._last[1]


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl` as it comes, so that a killed run keeps its curve.

    What JSON cannot hold (the infinite or undefined loss of a run that diverged) is written as null. On resume, what
    was logged after the checkpoint is dropped: those steps are run again.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line that has no end was being written when the run was killed.
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            write_text(self.path, "".join(kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            entry = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **entry}) + "\n")


class RunProgress(ProgressCallback):
    """One bar for the run that shows the losses as they fall or rise; the logs themselves are in `metrics.jsonl`."""

    SHOWN = ("forget/nll", "retain/nll", "eval_forget_loss", "eval_retain_loss")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None:
            shown = {name: f"{logs[name]:.3g}" for name in self.SHOWN if name in logs}
            self.training_bar.set_postfix(shown, refresh=False)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """No bar: evaluations are short and many."""
