# SPDX-License-Identifier: Apache-2.0
"""Trainer callbacks: audits before, during and after training, and a file of everything that was logged."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from ..audit import Audit
from ..files import write_text
from .best import metric_name


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
        at_end (`bool`):
            Audit when training ends; a checkpoint is on disk by then, until `train` returns. Otherwise `finish` is
            called by who has saved the result.
        known ([`Audit`], *optional*):
            An audit of the same items that was made before; it tells which metrics there will be.
    """

    def __init__(
        self,
        trainer,
        audit: Callable,
        at_start: bool = True,
        at_evaluation: bool = False,
        file=None,
        at_end: bool = True,
        known: Audit | None = None,
    ):
        self.trainer, self.audit = trainer, audit
        self.at_start, self.at_evaluation, self.at_end = at_start, at_evaluation, at_end
        self.file = None if file is None else Path(file)
        trainer.last_step.wanted = True
        self.before = self.after = None
        self._last = self._logged_at = None
        self._known = known

    @property
    def reported(self) -> dict[str, str] | None:
        """The metrics that evaluations carry, and which way each is better; `None` before an audit was made."""
        known = self._last[1] if self._last else self.before or self._known
        if not self.at_evaluation or known is None:
            return None if self.at_evaluation else {}
        return {f"eval_{name}": result.direction for name, result in known.metrics.items()}

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.at_start:
            return
        if state.global_step == 0:
            self.before = self._at(0)
            if self.file is not None and state.is_world_process_zero:
                self.before.save(self.file)
        elif self.file is not None and self.file.is_file():
            self.before = Audit.load(self.file)
        self.trainer.check_best()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self.at_evaluation:
            return
        values = {f"eval_{k}": v for k, v in self._at(state.global_step).values().items() if v is not None}
        self.trainer.check_best()
        metrics.update(values)
        if (chosen := metric_name(args)) in self.reported:
            # An undefined value is never the best.
            metrics.setdefault(chosen, math.nan)
        # Trainer evaluates several sets one by one and merges their metrics.
        if self._logged_at != state.global_step:
            self._logged_at = state.global_step
            self.trainer.log(values)

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end or self.trainer.changes_at_end:
            self._last = None
        if self.at_end:
            self.finish()

    def finish(self) -> Audit:
        """The audit of the result; called on all processes."""
        self.after = self._at(self.trainer.state.global_step)
        return self.after

    def _at(self, step: int) -> Audit:
        """The audit of the weights at a step, made once."""
        if self._last is None or self._last[0] != step:
            with self.trainer.auditing():
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
