# SPDX-License-Identifier: Apache-2.0
"""Trainer callbacks: audits before, during and after training, and a file of everything that was logged."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback


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
    """

    def __init__(self, trainer, audit: Callable, at_start: bool = True, at_evaluation: bool = False):
        self.trainer, self.audit = trainer, audit
        self.at_start, self.at_evaluation = at_start, at_evaluation
        self.before = self.after = None
        self._evaluated_at = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.at_start and state.global_step == 0:
            self.before = self._run()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        # Trainer evaluates several sets one by one; their metrics are merged, so one of them may carry the audit.
        if not self.at_evaluation or self._evaluated_at == state.global_step:
            return
        self._evaluated_at = state.global_step
        values = {f"eval_{name}": value for name, value in self._run().values().items() if value is not None}
        metrics.update(values)
        self.trainer.log(values)

    def on_train_end(self, args, state, control, **kwargs):
        self.after = self._run()

    def _run(self):
        return self.audit(self.trainer.model, self.trainer.accelerator)


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl` as it comes, so that a killed run keeps its curve."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "metrics.jsonl"

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
