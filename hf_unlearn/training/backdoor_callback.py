# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit of a model in training, through the Trainer's log."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from ..audit.backdoor.result import BackdoorAudit


PREFIX = "eval_backdoor/"


class BackdoorAuditCallback(TrainerCallback):
    """Audits before training, after it and after every epoch, on all processes at once (so that sharded weights are
    there), and logs `eval_backdoor/<set>_<condition>/<metric>`.

    Args:
        trainer ([`UnlearnTrainer`]):
            The run; metrics are logged through it, so that every tracker gets them.
        audit (`Callable[[Module, Accelerator], BackdoorAudit]`):
            Audits a model; see [`~hf_unlearn.audit.backdoor.evaluate.audit_backdoor`].
        at_start (`bool`):
            Audit the model before the first step too.
        first ([`BackdoorAudit`], *optional*):
            Its audit, where it was made earlier: it is logged and kept, and nothing is asked.
        keep (`Callable[[BackdoorAudit], None]`, *optional*):
            Called by the first process with the audit of the model before the first step, where that was made here.
        folder (`str` or `Path`, *optional*):
            Where each audit is kept as `backdoor_step_<step>.json`; a resumed run has the first from there.
        per_epoch (`bool`):
            Audit after every epoch, not only after the last.
        at_end (`bool`):
            Audit when training ends; a checkpoint is on disk by then, until `train` returns. Otherwise `finish` is
            called by who has saved the result.
    """

    def __init__(
        self,
        trainer,
        audit: Callable,
        at_start: bool = True,
        folder: str | Path | None = None,
        per_epoch: bool = True,
        at_end: bool = True,
        first: BackdoorAudit | None = None,
        keep: Callable[[BackdoorAudit], None] | None = None,
    ):
        self.trainer, self.audit, self.at_start, self.per_epoch = trainer, audit, at_start, per_epoch
        self.at_end, self.keep = at_end, keep
        self.folder = None if folder is None else Path(folder)
        trainer.last_step.wanted = True
        # Of the model before its first step, and as it is now.
        self.first: BackdoorAudit | None = first
        self.last: BackdoorAudit | None = None
        self._step: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and self.first is not None:
            self._step, self.last = 0, self.first
            self._tell(state)
        elif state.global_step == 0 and self.at_start:
            self._run(state)
            self.first = self.last
            if self.keep is not None and state.is_world_process_zero:
                self.keep(self.first)
        elif self.first is None and self.folder is not None and self._file(0).is_file():
            self.first = BackdoorAudit.load(self._file(0))

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.per_epoch:
            self._run(state)

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end or self.trainer.changes_at_end:
            self._step = None
        if self.at_end:
            self.finish()

    def finish(self) -> BackdoorAudit:
        """The audit of the result, for training by steps may end within an epoch; called on all processes."""
        self._run(self.trainer.state)
        return self.last

    def _file(self, step: int) -> Path | None:
        return None if self.folder is None else self.folder / f"backdoor_step_{step}.json"

    def _run(self, state) -> None:
        if self._step == state.global_step:
            return
        with self.trainer.auditing():
            self.last = self.audit(self.trainer.model, self.trainer.accelerator)
        self._step = state.global_step
        self._tell(state)

    def _tell(self, state) -> None:
        """Logs and keeps the last audit."""
        values = {f"{PREFIX}{name}": value for name, value in self.last.values().items() if value is not None}
        self.trainer.log(values)
        if self.folder is not None and state.is_world_process_zero:
            self.last.save(self._file(state.global_step), step=state.global_step)
