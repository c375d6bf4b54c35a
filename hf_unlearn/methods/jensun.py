# SPDX-License-Identifier: Apache-2.0
"""JensUn (https://huggingface.co/papers/2509.02820): Jensen-Shannon divergences in both terms."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..checks import check_left_out
from ..data.formats import IGNORE_INDEX
from ..data.pairing import RolePairs
from ..data.role_table import FORGET
from ..data.tables import mapped
from ..families.base import CAUSAL_LM
from ..forward.needs import REFERENCE, Need
from ..forward.role_rows import RoleRows
from ..fused import TileRows
from ..losses import js_rows, one_hot_js
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer


@dataclass
class JensUnConfig(UnlearnConfig):
    """Settings of [`JensUnTrainer`]; both weights are 1, as published."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("none", "nll", "kl", "js")

    retain_loss: str = field(
        default="js",
        metadata={"help": "Retain term: Jensen-Shannon divergence from the reference (`js`), `kl`, `nll` or `none`."},
    )
    target_text: str = field(
        default="No idea",
        metadata={"help": "Text whose tokens, over and over, are the targets at the places of a forget answer."},
    )

    def __post_init__(self):
        why = "the logged `forget/nll` is that of the target's tokens, which falls."
        check_left_out(self, ("max_forget_loss",), why)
        super().__post_init__()


def divergence(logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
    """Of kept rows, with their likelihood beside it."""
    return js_rows(logits, at.ref_logits), {"logps": -at.nll(logits)}


class JensUnTrainer(UnlearnTrainer):
    r"""\\( L_{forget} = JS(\pi_\theta(\cdot|x, y_{<t}) \| \delta_{e_t}) \\) with \\( e \\) the tokens of `target_text`
    repeated over the places of the forget answer, its end-of-text token included; the answer itself is what is read.
    \\( L_{retain} = JS(\pi_\theta \| \pi_{ref}) \\). Both are at most \\( \ln 2 \\), means over predicted tokens.

    The published code differs: at every position, of prompt and padding too, each of the target's tokens has
    probability 1, all at once, so its minimum is not a distribution. Here the target has one token a place.

    What the log calls `forget/nll` and `forget/logps` is of the target's tokens; losses of an evaluation are of the
    forget answers.
    """

    config_class = JensUnConfig
    method = "jensun"
    paper = "2509.02820"
    families = (CAUSAL_LM,)

    @classmethod
    def needs_of(cls, args: JensUnConfig):
        needs = dict(super().needs_of(args))
        compared = Need(divergence, reference=(REFERENCE,))
        return needs | {role: compared for role, term in args.kept_terms.items() if term == "js"}

    @classmethod
    def replaces_answers(cls, args: JensUnConfig) -> bool:
        return True

    def make_pairs(self, roles, args: JensUnConfig, processor) -> RolePairs:
        return super().make_pairs({**roles, FORGET: with_targets(roles[FORGET], args, processor)}, args, processor)

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return one_hot_js(rows.token_logps).sum() / max(len(rows.token_logps), 1)

    def retain_loss(self, rows: RoleRows) -> Tensor:
        return super().retain_loss(rows) if rows.value is None else rows.value


def with_targets(rows, args: JensUnConfig, tokenizer):
    """Encoded rows whose labels are the tokens of `target_text`, from its first on in every row."""
    target = tokenizer(args.target_text, add_special_tokens=False)["input_ids"]
    if not target:
        raise ValueError(f"target_text={args.target_text!r} has no token. Give a text such as 'No idea'.")

    def replaced(row):
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        labels = list(row["labels"])
        for number, place in enumerate(places):
            labels[place] = target[number % len(target)]
        return {"labels": labels}

    return mapped(rows, replaced)
