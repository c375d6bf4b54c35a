# SPDX-License-Identifier: Apache-2.0
"""SCRUB and SCRUB+R (https://huggingface.co/papers/2302.09880): see `docs/baselines.md`."""

import copy
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import DefaultFlowCallback, TrainerCallback

from ...data.role_table import FORGET, RETAIN
from ...data.seeds import data_seed
from ...forward.needs import REFERENCE, Need
from ...forward.role_rows import RoleRows
from ...fused import TileRows
from ...training.dropout import has_dropout
from ...training.trainer import UnlearnTrainer
from ..teacher import Taught
from .config import ScrubConfig
from .phases import MAX, PhasedRows, WithoutEmpty, phase_order
from .rewind import Rewind
from .warmup import ParamNoise, embedding_dropout


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Divergence:
    r"""\\( d = T^2 KL(p^{teacher}_T \| p^{student}_T) \\).

    Args:
        temperature (`float`): \\( T \\).
    """

    temperature: float

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        divergence = at.distillation(logits, self.temperature)
        return divergence, {"logps": -at.nll(logits.detach()), "divergence": divergence}


@dataclass(frozen=True)
class Kept:
    r"""\\( \alpha d + \gamma NLL \\).

    Args:
        alpha, gamma, temperature (`float`): the two weights; \\( T \\).
    """

    alpha: float
    gamma: float
    temperature: float

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        nll = at.nll(logits)
        values, stats = self.gamma * nll, {"logps": -nll}
        if self.alpha:
            stats["divergence"] = at.distillation(logits, self.temperature)
            values = values + self.alpha * stats["divergence"]
        return values, stats


class ScrubTrainer(Taught, UnlearnTrainer):
    r"""A student that diverges from its teacher, the frozen original, on forget rows and follows it on the others.

    `msteps` times there is an epoch of max steps, \\( L = -d \\) on forget rows, in addition to an epoch of min steps,
    \\( L = \alpha d + \gamma NLL \\) on retain rows; later epochs have min steps only. A row's value is the mean over
    its predictions.

    With `rewind` the weights after each epoch are saved in `rewind/`, and training ends with those whose error on the
    forget rows is nearest to the final weights' error on `eval_dataset["holdout"]`: unseen rows of the same kind.
    """

    config_class = ScrubConfig
    method = "scrub"
    paper = "2302.09880"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_collator = WithoutEmpty(self.data_collator)
        self.epoch_ends = self.train_dataset.epoch_ends()
        self.rewind = Rewind(self) if self.args.rewind else None
        if self.rewind is not None:
            self.add_callback(self.rewind)
        self.add_callback(EpochEnds(self))
        if self.args.scrub_warmup == "param_noise":
            self.add_callback(ParamNoise(self))
        if self.args.scrub_warmup == "none" and not has_dropout(self.model):
            logger.warning(
                "scrub_warmup='none', and the model has no dropout: where the student is its teacher the divergence "
                "has no gradient but rounding noise, which decides where the first max steps go. Take 'min_first', "
                "'param_noise' or 'dropout'."
            )

    # What the method says of itself

    def make_pairs(self, roles, args: ScrubConfig, processor) -> PhasedRows:
        places = args.per_device_train_batch_size
        return PhasedRows(
            roles,
            phase_order(int(args.num_train_epochs), args.msteps, args.scrub_warmup == "min_first"),
            sizes={RETAIN: places, FORGET: args.forget_batch_size or places},
            places=places,
            batches_a_step=args.gradient_accumulation_steps * args.world_size,
            seed=data_seed(args),
        )

    @classmethod
    def needs_of(cls, args: ScrubConfig):
        return {
            FORGET: Need(Divergence(args.temperature), reference=(REFERENCE,)),
            RETAIN: Need(Kept(args.alpha, args.gamma, args.temperature), reference=(REFERENCE,) if args.alpha else ()),
        }

    def check_eval(self, args: ScrubConfig, eval_dataset) -> None:
        if args.rewind and not (isinstance(eval_dataset, dict) and "holdout" in eval_dataset):
            raise ValueError(
                "rewind=True compares with rows like the forget rows that were never trained on. Pass them as "
                "eval_dataset={'holdout': ...}, or leave `rewind` out."
            )

    # The objective

    def role_rows(self, model, inputs) -> dict[str, RoleRows]:
        drops = self.args.scrub_warmup == "dropout" and self._phase_of(inputs) == MAX
        with embedding_dropout(model, self.args.warmup_dropout) if drops else nullcontext():
            return super().role_rows(model, inputs)

    def _phase_of(self, inputs) -> str:
        return self.role_names[int(inputs["role"][0])]

    def forget_loss(self, rows: RoleRows) -> Tensor:
        limit = self.args.max_divergence
        return -(rows.value if limit is None else rows.value.clamp(max=limit))

    def retain_loss(self, rows: RoleRows) -> Tensor:
        return rows.value

    # The run

    def set_initial_training_values(self, args, dataloader):
        # To Trainer all phases together are one epoch: it knows epochs of equal lengths only.
        args = copy.copy(args)
        args.num_train_epochs = 1
        if args.max_steps > self.epoch_ends[-1]:
            args.max_steps = -1
        return super().set_initial_training_values(args, dataloader)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if not self.args.lr_decay_epochs or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        decays = [self.epoch_ends[epoch - 1] for epoch in self.args.lr_decay_epochs if epoch <= len(self.epoch_ends)]
        rate = self.args.lr_decay_rate
        self.lr_scheduler = LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: rate ** sum(step >= end for end in decays),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def changes_at_end(self) -> bool:
        return self.args.rewind

    def method_state(self) -> dict[str, Any]:
        return {} if self.rewind is None else {"rewind_errors": self.rewind.errors}

    def load_method_state(self, state: dict[str, Any]) -> None:
        if self.rewind is not None:
            if "rewind_errors" not in state:
                raise ValueError("rewind=True, and the checkpoint was made without it: earlier epochs were not kept.")
            self.rewind.go_on(state["rewind_errors"])


class EpochEnds(TrainerCallback):
    """Counts SCRUB's epochs, and does at their ends what Trainer does at its own.

    Args:
        trainer ([`ScrubTrainer`]): the run.
    """

    def __init__(self, trainer):
        self.trainer, self.flow = trainer, DefaultFlowCallback()

    def on_step_end(self, args, state, control, **kwargs):
        ends, step = self.trainer.epoch_ends, state.global_step
        number = next(number for number, end in enumerate(ends) if step <= end)
        start = ends[number - 1] if number else 0
        state.epoch = number + (step - start) / (ends[number] - start)
        if step == ends[number] and step < state.max_steps:
            self.flow.on_epoch_end(args, state, control)
