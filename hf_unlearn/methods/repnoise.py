# SPDX-License-Identifier: Apache-2.0
"""Representation noising (https://huggingface.co/papers/2405.14577)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checks import check_number
from ..data.alternates import AlternateArguments, source_of
from ..data.role_table import ALTERNATE, FORGET
from ..families.base import CAUSAL_LM
from ..forward.needs import LOGPS, Need
from ..forward.role_rows import RoleRows
from ..losses import layer_ascent_loss, noise_loss
from ..processes import of_all_processes
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class RepNoiseConfig(AlternateArguments, UnlearnConfig):
    """Settings of [`RepNoiseTrainer`]; the defaults are those of its code (beside a learning rate of 2e-5)."""

    alpha: float = field(default=1.0, metadata={"help": "Weight of the ascent at every layer, 0 or more."})
    beta: float = field(default=1e-3, metadata={"help": "Weight of the distance to noise, 0 or more."})
    alternate_weight: float = field(
        default=1.0, metadata={"help": "Weight of the alternates' term, 0 or more, where there are some."}
    )
    retain_loss: str = field(default="nll", metadata={"help": "Retain term: `nll`, `kl` or `none`."})

    def __post_init__(self):
        for name in ("alpha", "beta", "alternate_weight"):
            check_number(name, getattr(self, name), at_least=0)
        super().__post_init__()
        if self.reentrant:
            raise ValueError(
                "RepNoise reads activations inside the model, and reentrant checkpointing cuts their gradients. Pass "
                "activation_checkpointing_kwargs={'use_reentrant': False}."
            )

    # Whether alternates are given as rows.
    alternate_rows: ClassVar[bool] = False

    def settled(self, retain_rows: bool, alternate_rows: bool = False) -> "RepNoiseConfig":
        found = super().settled(retain_rows, alternate_rows)
        if alternate_rows != found.alternate_rows:
            found = copy.copy(found)
            found.alternate_rows = alternate_rows
        return found

    def weight_of(self, role: str) -> float:
        return self.alternate_weight if role == ALTERNATE else super().weight_of(role)


class RepNoiseTrainer(UnlearnTrainer):
    r"""\\( CE(harmless) + \beta \frac{1}{L} \sum_l MMD^2(h_l(x_f), N(0, I)) - \alpha \log(1 + \frac{1}{L} \sum_l
    CE_l(y_f)) \\) over all \\( L \\) decoder layers: their states at the answers' tokens become noise, and no layer,
    read with the final norm and the head, predicts the answers. See [`~hf_unlearn.losses.noise_loss`] and
    [`~hf_unlearn.losses.layer_ascent_loss`].

    Harmless are the retain rows and, with `alternate_source`, `alternate_column` or `alternate_dataset`, another
    answer to each forget prompt: the paper pairs harmful answers with refusals of the same prompt, and has no other
    rows.

    Neither logarithm nor discrepancy is a mean over rows. Both are taken of a micro-batch of all processes together,
    so that several processes train as one does, and its size is part of the objective: accumulated micro-batches are
    not one large one. The noise is drawn from `seed` at every step.

    The published code differs: a sample of its discrepancy is a whole row, the output of its MLPs with padding; its
    lens reads the embeddings too, and the last layer twice, once through the norm twice.
    """

    config_class = RepNoiseConfig
    method = "repnoise"
    paper = "2405.14577"
    families = (CAUSAL_LM,)

    @classmethod
    def needs_of(cls, args: RepNoiseConfig):
        others = {ALTERNATE: LOGPS} if args.alternate_rows or source_of(args) else {}
        return {**super().needs_of(args), FORGET: Need(lens=True), **others}

    @classmethod
    def forgets(cls, term: str) -> bool:
        # Alternates are the paper's harmless rows, whose term keeps the model as retain rows do.
        return term == FORGET

    @classmethod
    def unscored(cls, args: RepNoiseConfig) -> str | None:
        # Processes score rows of their own, of which one may have more than another.
        return None if args.world_size == 1 else "takes that of the rows of all processes together"

    def forget_loss(self, rows: RoleRows) -> Tensor:
        args, accelerator = self.args, self.accelerator
        states = of_all_processes(rows.layer_states, accelerator)
        # The same noise on every process.
        generator = torch.Generator(states.device).manual_seed(args.seed + self.state.global_step)
        noise = torch.randn(states.shape, generator=generator, device=states.device)
        # The pairs of one layer at a time.
        distances = [
            checkpoint(noise_loss, states[:, layer], noise[:, layer], use_reentrant=False)
            for layer in range(states.shape[1])
        ]
        distance = torch.stack(distances).mean()
        logps = of_all_processes(rows.layer_logps, accelerator)
        ascent = layer_ascent_loss(logps, self._shares(rows))
        rows.noted |= {"mmd": distance.detach(), "layer_nll": ascent.detach().neg().expm1()}
        return args.beta * distance + args.alpha * ascent

    def _shares(self, rows: RoleRows) -> Tensor:
        """Every token's share of the rows of all processes; a token's log-probabilities go beside it."""
        own = rows.predicted.row_weights * len(rows.batch["labels"])
        count = self.accelerator.reduce(own.new_tensor(len(rows.batch["labels"])), reduction="sum")
        return of_all_processes(own, self.accelerator) / count

    def terms(self, rows: Mapping[str, RoleRows]) -> dict[str, Tensor]:
        others = {ALTERNATE: rows[ALTERNATE].nll} if ALTERNATE in rows else {}
        return {**super().terms(rows), **others}
