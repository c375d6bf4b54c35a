# SPDX-License-Identifier: Apache-2.0
"""What a trainer does at fixed moments of a run."""

import logging

from transformers import TrainerCallback

from ..forward.trial import check_packing
from ..stored.row_cache import RunStart
from .launch_check import tell_launch


logger = logging.getLogger(__name__)


class RunControl(TrainerCallback):
    """Prepares what needs the wrapped model, keeps the sampler's epoch right after a resume, and stops an ascent that
    runs away.

    Args:
        trainer ([`UnlearnTrainer`]): the run.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        tell_launch(self.trainer)
        self.trainer.family.try_model(self.trainer)
        self.trainer.states_like = self.trainer.forward_path.probe(self.trainer.model_wrapped)
        if self.trainer.forward_path.shape == "packed":
            check_packing(self.trainer)
        start = RunStart(
            model=self.trainer.model_wrapped,
            core=self.trainer.model,
            accelerator=self.trainer.accelerator,
            step=state.global_step,
            states_like=self.trainer.states_like,
            trainer=self.trainer,
        )
        for kept in (self.trainer.forward_path.prefix, self.trainer.references, *self.trainer.addons.values()):
            if kept is not None:
                kept.prepare(start)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate does not hand the epoch through the wrapper it puts around skipped batches on several processes.
        self.trainer.pair_sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        limit = args.max_forget_loss
        if limit is None:
            return
        nll = self.trainer.meters.last("forget/nll", self.trainer.accelerator)
        # Written so that NaN, of which no comparison holds, stops too.
        if not nll <= limit:
            self.trainer.stop_reason = (
                f"Stopped at step {state.global_step}: the forget rows' loss is {nll:.4g} nats a token, above "
                f"max_forget_loss={limit}."
            )
            logger.warning(self.trainer.stop_reason)
            control.should_training_stop = True
