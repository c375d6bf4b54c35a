# SPDX-License-Identifier: Apache-2.0
"""SCRUB+R: the epoch at which the model errs on forget rows as it does on rows that it never saw."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback

from ...data.role_table import FORGET
from ...files import whole_file, write_text
from ...forward.needs import Need
from ...fused import TileRows
from ...modeling import evaluating


logger = logging.getLogger(__name__)

FOLDER, CHOICE = "rewind", "rewind.json"


def nearest(errors: Mapping[str, float], wanted: float) -> str:
    """The epoch whose error is nearest; of several, the latest."""
    return min(errors, key=lambda epoch: (abs(errors[epoch] - wanted), -int(epoch)))


def prediction_errors(logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of each prediction `[n]`, and how wrong the likeliest class is: 0 or 1, or what its soft
    label is short of 1."""
    best, nll = logits.argmax(-1), at.nll(logits)
    if at.labels.dim() == 1:
        wrong = best != at.labels
    else:
        wrong = 1 - at.labels.gather(-1, best[:, None]).squeeze(-1)
    return nll, {"logps": -nll, "loss": nll, "error": wrong.to(nll.dtype)}


class Rewind(TrainerCallback):
    """Keeps the weights after every epoch, those of the start included, and at the end puts the nearest in place.

    Args:
        trainer ([`ScrubTrainer`]): the run.

    Attributes:
        errors (`dict[str, float]`): epoch to the error on forget rows then.
    """

    def __init__(self, trainer):
        self.trainer, self.errors = trainer, {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.errors = {}
            self.keep(0)

    def go_on(self, errors: Mapping[str, float]) -> None:
        """Takes up a checkpoint's `errors`.

        Raises:
            `ValueError`: if the weights of an epoch before it are not in the run's folder.
        """
        if missing := [file for epoch in errors if not (file := self.file(int(epoch))).is_file()]:
            more = f" and {len(missing) - 1} more of the epochs before the checkpoint" if missing[1:] else ""
            raise ValueError(
                f"No {missing[0]}{more}, and the run may have to end with those weights. Go on in the output_dir that "
                f"the checkpoint was made in, or copy its {FOLDER}/ to {missing[0].parent}."
            )
        self.errors = dict(errors)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.trainer.epoch_ends:
            self.keep(1 + self.trainer.epoch_ends.index(state.global_step))

    def on_train_end(self, args, state, control, **kwargs):
        ends = self.trainer.epoch_ends
        if state.global_step not in (0, *ends):
            # `max_steps` cut an epoch short.
            self.keep(1 + sum(end < state.global_step for end in ends))
        wanted = self.error_on(self.trainer.eval_dataset["holdout"])
        epoch = nearest(self.errors, wanted)
        logger.info(
            "Rewind to epoch %s: its %s on forget rows is %.4g, and the last model's on held-out rows %.4g.",
            epoch,
            args.rewind_error,
            self.errors[epoch],
            wanted,
        )
        self.put(int(epoch))
        if args.should_save:
            choice = {"epoch": int(epoch), "error": args.rewind_error, "wanted": wanted, "forget": self.errors}
            path = Path(args.output_dir) / CHOICE
            write_text(path, json.dumps(choice, indent=1) + "\n")

    def keep(self, epoch: int) -> None:
        """Writes what changes, and looks at the forget rows."""
        from safetensors.torch import save_file

        self.errors[str(epoch)] = self.error_on(self.trainer.train_dataset.roles[FORGET])
        if self.trainer.args.should_save:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in self._changing().items()}
            with whole_file(self.file(epoch)) as part:
                save_file(kept, part)
        self.trainer.accelerator.wait_for_everyone()

    @torch.no_grad()
    def put(self, epoch: int) -> None:
        """The weights after an epoch become the model's."""
        from safetensors.torch import load_file

        kept = load_file(self.file(epoch))
        for name, tensor in self._changing().items():
            tensor.copy_(kept[name])

    def file(self, epoch: int) -> Path:
        return Path(self.trainer.args.output_dir) / FOLDER / f"epoch-{epoch}.safetensors"

    @torch.no_grad()
    def error_on(self, rows) -> float:
        """Mean error over rows, on all processes together."""
        trainer = self.trainer
        own = range(trainer.args.process_index, len(rows), trainer.args.world_size)
        needs = {FORGET: Need(prediction_errors)}
        path = trainer.family.build_forward(trainer.model, trainer.args, needs, "one")
        total = torch.zeros((), device=trainer.args.device)
        with evaluating(trainer.model), trainer.compute_loss_context_manager():
            for start in range(0, len(own), trainer.args.per_device_eval_batch_size):
                numbers = own[start : start + trainer.args.per_device_eval_batch_size]
                batch = trainer.data_collator.collator.pad([rows[i] for i in numbers])
                part = {name: value.to(trainer.args.device) for name, value in batch.items()}
                part["index"] = torch.tensor(list(numbers))
                found = path.policy(trainer.model, {FORGET: part}, {})[FORGET]
                total += found.mean(found.stats[trainer.args.rewind_error]) * len(numbers)
        return (trainer.accelerator.reduce(total, reduction="sum") / len(rows)).item()

    def _changing(self) -> dict[str, Tensor]:
        """What trains, and what forward passes change, such as the means of a batch normalisation."""
        model = self.trainer.model
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
        return {name: p for name, p in model.named_parameters() if p.requires_grad} | buffers
