# SPDX-License-Identifier: Apache-2.0
"""Primal-dual unlearning (PDU, https://huggingface.co/papers/2506.05314): flat logits on forget rows, under a limit on
the retain loss whose weight is a dual variable."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..addons.settings import kept_roles_of
from ..checks import check_choice, check_number
from ..data.role_table import FORGET, RETAIN
from ..forward.needs import Need
from ..losses import pdu_rows
from ..training.config import UnlearnConfig
from .label_rows import PredictionRowsTrainer


UPDATES = ("step", "epoch")


@dataclass
class PDUConfig(UnlearnConfig):
    """Settings of [`PDUTrainer`]; names and defaults are those of OpenUnlearning for TOFU. For MUSE it takes
    `retain_weight=50` and `dual_step_size=1`."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("nll", "kl")

    retain_loss: str = field(default="nll", metadata={"help": "The loss that is kept below the limit: `nll` or `kl`."})
    retain_weight: float = field(default=100.0, metadata={"help": "Dual variable at the beginning, 0 or more."})
    retain_loss_eps: float = field(default=0.3, metadata={"help": "Limit of the retain loss (nats), 0 or more."})
    dual_step_size: float = field(
        default=5.0, metadata={"help": "What the excess of the retain loss is multiplied by in an update, above 0."}
    )
    dual_update_upon: str = field(
        default="step",
        metadata={"help": "When the dual variable changes: after each optimizer `step`, or after each `epoch`."},
    )
    dual_warmup_epochs: float = field(
        default=5, metadata={"help": "Epochs before the first update, in which it stays as it is."}
    )

    def __post_init__(self):
        check_choice("dual_update_upon", self.dual_update_upon, UPDATES)
        check_number("retain_loss_eps", self.retain_loss_eps, at_least=0)
        check_number("dual_step_size", self.dual_step_size, above=0)
        check_number("dual_warmup_epochs", self.dual_warmup_epochs, at_least=0)
        super().__post_init__()


class PDUTrainer(PredictionRowsTrainer):
    r"""Flattens the logits of forget rows ([`~hf_unlearn.losses.pdu_rows`]) while the retain loss is kept below
    \\( \epsilon \\): its weight, \\( \lambda \\), becomes \\( [\lambda + \eta (L_{retain} - \epsilon)]_+ \\) after
    each step or epoch.

    \\( L_{retain} \\) is the mean over what went through the model since the last update, on all processes. So
    \\( \lambda \\) is the same on each; it is in every checkpoint and in the log (`retain/dual`). OpenUnlearning
    takes the forget term over every position, prompt and padding among them, updates after each micro-batch by that of
    one process, and reads the retain set once more after an epoch.
    """

    config_class = PDUConfig
    method = "pdu"
    paper = "2506.05314"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dual = float(self.args.retain_weight)
        # Of the steps since the last update: sum of their retain losses, and their number.
        self.retain_seen, self.steps_seen = 0.0, 0
        self._micro_batches: list[Tensor] = []
        # Before what may save the step's checkpoint.
        self.callback_handler.callbacks.insert(0, DualUpdate(self))

    @classmethod
    def needs_of(cls, args: PDUConfig):
        return {**super().needs_of(args), FORGET: Need(margin)}

    def weight_of(self, role: str) -> float:
        own = {name: weight for name, (_, weight) in kept_roles_of(self.args).items()}
        follows = role in self.args.kept_terms and own.get(role) is None
        return self.dual if follows else self.args.weight_of(role)

    def terms(self, rows) -> dict[str, Tensor]:
        found = super().terms(rows)
        # Passes that an add-on repeats count once.
        if not self.meters.is_silent:
            self._micro_batches.append(found[RETAIN].detach().float())
        return found

    def method_state(self) -> dict:
        state = {"dual": self.dual, "retain_seen": self.retain_seen, "steps_seen": self.steps_seen}
        return {**super().method_state(), **state}

    def load_method_state(self, state: dict) -> None:
        super().load_method_state(state)
        self.dual, self.retain_seen, self.steps_seen = (state[name] for name in ("dual", "retain_seen", "steps_seen"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "retain/dual": self.dual} if "loss" in logs else logs, start_time)

    def end_step(self, epoch: float) -> None:
        """Takes the step's retain loss, and updates the dual variable where that is due.

        Args:
            epoch (`float`): epochs done, this step included.
        """
        args, own = self.args, torch.stack(self._micro_batches).mean()
        self._micro_batches = []
        self.retain_seen += self.accelerator.reduce(own, reduction="mean").item()
        self.steps_seen += 1
        # The epoch of a step is a fraction, whose end is rounded.
        if args.dual_update_upon == "step":
            due, warm = True, epoch > args.dual_warmup_epochs + 1e-6
        else:
            due, warm = abs(epoch - round(epoch)) < 1e-6, epoch > args.dual_warmup_epochs - 1e-6
        if due:
            excess = self.retain_seen / self.steps_seen - args.retain_loss_eps
            self.dual = max(0.0, self.dual + args.dual_step_size * excess) if warm else self.dual
            self.retain_seen, self.steps_seen = 0.0, 0


class DualUpdate(TrainerCallback):
    """Ends the steps of a [`PDUTrainer`]. The end of an epoch is that of its last step, of which there may be a
    checkpoint: a run that goes on from there ends no epoch that is over."""

    def __init__(self, trainer: PDUTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._micro_batches = []

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_step(state.epoch)


def margin(logits: Tensor, at) -> tuple[Tensor, dict[str, Tensor]]:
    """Of forget rows, with their likelihood beside it."""
    return pdu_rows(logits), {"logps": -at.nll(logits.detach())}
