# SPDX-License-Identifier: Apache-2.0
"""LLMU (Large Language Model Unlearning, https://huggingface.co/papers/2310.10683)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..checks import check_number
from ..data.alternates import AlternateArguments
from ..data.role_table import ALTERNATE
from ..families.base import CAUSAL_LM
from ..forward.needs import LOGPS
from ..forward.role_rows import RoleRows
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class LLMUConfig(AlternateArguments, UnlearnConfig):
    """Settings of [`LLMUTrainer`]; the defaults are those of its code (beside a learning rate of 2e-6 and 2 rows a
    step)."""

    DEFAULT_SOURCE: ClassVar[str | None] = "retain"

    forget_weight: float = field(default=0.5, metadata={"help": "Weight of the ascent on forget rows."})
    alternate_weight: float = field(default=1.0, metadata={"help": "Weight of the alternates' term, 0 or more."})
    retain_loss: str = field(default="kl", metadata={"help": "Retain term: `kl`, as published, `nll` or `none`."})
    num_alternates: int = field(
        default=5, metadata={"help": "Other answers to a forget row's prompt, all of them in every step."}
    )
    max_forget_loss: float | None = field(
        default=100.0,
        metadata={"help": "Stop once the forget rows' negative log-likelihood per token (nats) exceeds this."},
    )

    def __post_init__(self):
        check_number("alternate_weight", self.alternate_weight, at_least=0)
        super().__post_init__()

    def weight_of(self, role: str) -> float:
        return self.alternate_weight if role == ALTERNATE else super().weight_of(role)


class LLMUTrainer(UnlearnTrainer):
    r"""Gradient ascent on the forget answers, fine-tuning on other answers to their prompts, and KL to the reference
    on retain rows: \\( -0.5 NLL(y_f) + NLL(y_e) + KL(\pi_{ref} \| \pi_\theta) \\). The first two are means over a
    row's tokens, then over rows.

    The published code differs from the paper's equations: what it fine-tunes on begins within the prompt, its KL
    counts padding, and it compares a loss that is negative with the limit, so that it never stops early. Here
    answers alone count, and a run stops where `max_forget_loss` is passed. The random answers of a row are drawn once
    and stay.
    """

    config_class = LLMUConfig
    method = "llmu"
    paper = "2310.10683"
    families = (CAUSAL_LM,)
    together = (ALTERNATE,)

    @classmethod
    def needs_of(cls, args: LLMUConfig):
        return {**super().needs_of(args), ALTERNATE: LOGPS}

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return rows.mean(rows.token_logps)

    def terms(self, rows: Mapping[str, RoleRows]) -> dict[str, Tensor]:
        others = rows[ALTERNATE]
        return {**super().terms(rows), ALTERNATE: -others.mean(others.token_logps)}
