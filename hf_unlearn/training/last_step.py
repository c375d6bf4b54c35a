# SPDX-License-Identifier: Apache-2.0
"""The step that training ends with is on disk before anything else: evaluations, callbacks, trackers, audits."""

import logging
import shutil
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling import is_peft_model
from .checkpoints import is_whole, refresh


logger = logging.getLogger(__name__)


class LastStep(TrainerCallback):
    """Saves a checkpoint with the last step, and brings its log up to date when training has ended.

    Where checkpoints are saved anyway, the last one is saved before its evaluation and not after it. With
    `save_strategy="no"` there is one only if it is `wanted`; it holds no optimizer state then, for no step follows it.

    Args:
        trainer ([`ResumableTrainer`]): the run.

    Attributes:
        wanted (`bool`): save although `save_strategy` asks for no such checkpoint; set by audits that follow.
        outlives_training (`bool`): who set `wanted` calls `tidy` himself; otherwise `train` does.
        saved (`int`, *optional*): the step that a whole checkpoint in the run's folder is of.
        stepped (`bool`): whether a step has been made since `begin`.
        stopped (`bool`): whether training ended before `max_steps`.
        evaluation_due (`bool`): whether the evaluation of the saved step was not made to its end.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.wanted = self.outlives_training = False
        self.begin(None, {})

    def begin(self, checkpoint: str | None, facts: dict) -> None:
        """A run begins, or goes on from a checkpoint that says `facts` of itself."""
        self.resumed = self.saved = self.beside = None
        if checkpoint is not None:
            path = Path(checkpoint).resolve()
            number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
            self.resumed = int(number) if number.isdecimal() else None
            own = path.parent == Path(self.trainer.args.output_dir).resolve()
            self.beside = path.parent
            self.saved = self.resumed if own else None
        self.stepped = False
        # Who goes on without the callback that stopped the run wants more steps.
        self.stopped = facts.get("stopped", False) and set(facts.get("callbacks", ())) <= self._callbacks()
        self.evaluation_due = facts.get("evaluation_due", False)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.beside is not None and args.load_best_model_at_end and state.best_global_step:
            self._find_best(state)
        if args.should_save and (self.wanted or self._asked):
            tell_disk(args.output_dir, model)

    def _find_best(self, state) -> None:
        """The best checkpoint so far is where the run's folder is now; Trainer would look where it was, and load none.

        Raises:
            `ValueError`: if it is not there.
        """
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        places = [Path(self.trainer.args.output_dir) / name, self.beside / name]
        best = next(filter(is_whole, places), None)
        if best is None:
            raise ValueError(
                f"load_best_model_at_end=True: {name}, the best by "
                f"{self.trainer.args.metric_for_best_model}, is not whole or not in {self.beside}. Put it "
                "back, leave load_best_model_at_end out, or start anew."
            )
        state.best_model_checkpoint = str(best)

    def on_step_end(self, args, state, control, **kwargs):
        self.stepped = True
        if control.should_training_stop and not self.trainer.terminates:
            self.evaluation_due = control.should_evaluate or args.eval_strategy == "epoch"
            self.save()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.stepped and self.saved == state.global_step and "train_runtime" not in (logs or {}):
            self.update()

    def save(self) -> None:
        """Writes the checkpoint of the step that training has ended with, or its log if it is there."""
        args, state = self.trainer.args, self.trainer.state
        self.stopped = self.stopped or state.global_step < state.max_steps
        if self.saved == state.global_step:
            if self.stepped:
                self.update()
            return
        if not (self.wanted or self._asked):
            return
        self.trainer.check_finite()
        before = args.save_only_model, args.push_to_hub
        if not self._asked:
            # Sharded engines load weights and optimizer together. And nothing is public before it is the result.
            args.save_only_model = not (self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled)
            args.push_to_hub = False
        try:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        finally:
            args.save_only_model, args.push_to_hub = before

    def update(self) -> None:
        """Writes what was logged since, and which checkpoint is the best, into the checkpoint."""
        state = self.trainer.state
        best = self._folder(state.best_global_step) if state.best_global_step else None
        if best is not None and best.is_dir():
            state.best_model_checkpoint = str(best)
        if self.trainer.args.should_save and is_whole(self._folder(self.saved)):
            refresh(self._folder(self.saved), state, **self.facts())
        self.trainer.accelerator.wait_for_everyone()

    def facts(self) -> dict:
        """What a checkpoint says of the end of training."""
        reason = self.trainer.stop_reason if self.stopped else None
        told = {"stopped": self.stopped, "stop_reason": reason, "evaluation_due": self.evaluation_due}
        return told | {"callbacks": sorted(self._callbacks())}

    def _callbacks(self) -> set[str]:
        """Names of the classes that may stop a run, those of its user too."""
        handler = getattr(self.trainer, "callback_handler", None)
        return {type(callback).__name__ for callback in getattr(handler, "callbacks", ())}

    def tidy(self) -> None:
        """Removes checkpoints that were kept until all that follows training was done: the last one where it was not
        asked for, and those above `save_total_limit`."""
        from transformers.trainer_utils import rotate_checkpoints

        args, state = self.trainer.args, self.trainer.state
        limit, best = args.save_total_limit, state.best_global_step
        # Of one checkpoint and the best, Trainer keeps the best.
        unasked = (self.wanted and not self._asked) or (limit == 1 and best is not None)
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            if unasked and self.saved not in (None, best) and is_whole(self._folder(self.saved)):
                shutil.rmtree(self._folder(self.saved))
            best = None if best is None else str(self._folder(best))
            rotate_checkpoints(args.output_dir, limit, best_model_checkpoint=best, use_mtime=True)
        self.saved = None

    @property
    def _asked(self) -> bool:
        return self.trainer.args.save_strategy in ("steps", "epoch")

    def _folder(self, step: int) -> Path:
        return Path(self.trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def tell_disk(folder: str, model) -> None:
    """Warns before training where the disk has no room for the weights, which a run writes twice: the last step, and
    the result."""
    adapter = is_peft_model(model)
    saved = [weight for weight in model.parameters() if weight.requires_grad or not adapter]
    # Of ZeRO-3's weights each process holds a part.
    sizes = (getattr(weight, "ds_numel", weight.numel()) * weight.element_size() for weight in saved)
    needed, place = 2 * sum(sizes), Path(folder).resolve()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir())).free
    if free < needed:
        logger.warning(
            "%s has %.3g GB free, and the run writes at least %.3g GB there: its weights may be lost when it ends. "
            "Make room, or give another output_dir.",
            place,
            free / 1e9,
            needed / 1e9,
        )
