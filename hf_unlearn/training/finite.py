# SPDX-License-Identifier: Apache-2.0
"""A loss that is no finite number ends training, on all processes at once, before anything of it is saved."""

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from .checkpoints import last_whole
from .faults import NonFiniteError
from .meters import NEVER, Meters


WEIGHTS = "the weights"


class FiniteCheck(TrainerCallback):
    """Looks, before every log, evaluation and checkpoint and at the end, whether all losses were finite; and, where
    the weights are about to be saved, whether they are.

    Which step and which component it was is kept on the device meanwhile (see [`Meters`]), so a step costs no wait.

    Args:
        trainer ([`ResumableTrainer`]):
            The run.
        meters ([`Meters`]):
            Gets the losses.
    """

    def __init__(self, trainer, meters: Meters):
        self.trainer, self.meters = trainer, meters

    def on_train_begin(self, args, state, control, **kwargs):
        self.meters.first_bad.clear()

    def on_step_begin(self, args, state, control, **kwargs):
        self.meters.step = state.global_step + 1

    def on_step_end(self, args, state, control, **kwargs):
        saves = control.should_save or control.should_training_stop
        if saves or control.should_log or control.should_evaluate:
            self.check(with_weights=saves)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def check(self, with_weights: bool) -> None:
        """Raises [`NonFiniteError`] on every process if something on any process is not finite."""
        names = sorted(self.meters.first_bad)
        found = [self.meters.first_bad[name] for name in names]
        if with_weights:
            names.append(WEIGHTS)
            finite = weights_finite(self.trainer.model)
            found.append(torch.where(finite, NEVER, self.meters.step))
        if not found:
            return
        steps = torch.stack([step.to(self.trainer.args.device) for step in found])
        first = self.trainer.accelerator.gather(steps[None]).min(0).values.tolist()
        if min(first) < NEVER:
            raise NonFiniteError(self._message(dict(zip(names, first, strict=True))))

    def _message(self, first: dict[str, int]) -> str:
        step = min(first.values())
        # Of a loss that is not finite the weights take it over in the same step.
        bad = " and ".join([name for name, at in first.items() if at == step and name != WEIGHTS] or [WEIGHTS])
        last = last_whole(self.trainer.args.output_dir)
        good = f"The last good checkpoint is {last}." if last else "There is no checkpoint from before."
        return (
            f"Stopped: at step {step} {bad} became infinite or undefined (NaN). Nothing was saved since. {good} Take "
            "a lower `learning_rate` or fewer steps, or bound the ascent with `max_forget_loss`."
        )


@torch.no_grad()
def weights_finite(model: nn.Module) -> Tensor:
    """Whether all trained weights are finite, a scalar; of sharded weights, this process's part."""
    parts = [_local(parameter) for parameter in model.parameters() if parameter.requires_grad]
    # Extremes are NaN where anything is, and need no mask as large as the weights.
    extremes = [torch.stack(part.aminmax()).float() for part in parts if part.numel()]
    device = extremes[0].device if extremes else "cpu"
    return torch.stack([pair.to(device) for pair in extremes]).isfinite().all() if extremes else torch.tensor(True)


def _local(parameter: nn.Parameter) -> Tensor:
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
