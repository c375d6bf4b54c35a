# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy unlearning (CE-U, https://huggingface.co/papers/2503.01224)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_whole
from ..data.role_table import FORGET
from ..forward.needs import Need
from ..fused.predicted import Predicted
from ..losses import IGNORE_INDEX, ceu_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer, OfLabels


@dataclass
class CEUConfig(UnlearnConfig):
    """Settings of [`CEUTrainer`]. The default is that of CE-U in OpenUnlearning, which has no retain term."""

    skip_tokens: int = field(
        default=1,
        metadata={"help": "Predicted tokens at the beginning of each forget row that are not trained on."},
    )

    def __post_init__(self):
        if self.skip_tokens is None:
            raise ValueError("skip_tokens=None; give a whole number of at least 0.")
        check_whole("skip_tokens", self.skip_tokens, at_least=0)
        super().__post_init__()


@dataclass(frozen=True)
class LaterTokens:
    """`[N]`, to sum with: a mean over each row's tokens but the first, then over rows.

    Args:
        skipped (`int`): predicted tokens that are left out of each row.
    """

    skipped: int

    def __call__(self, tokens: Predicted) -> Tensor:
        place = tokens.mask.cumsum(1)[tokens.mask]
        left = (tokens.mask.sum(1) - self.skipped).clamp(min=1)
        return (place > self.skipped) / (left[tokens.row] * len(left)).float()


class CEUTrainer(LabelRowsTrainer):
    """Cross-entropy with the model's own prediction without the label, which stops where the label's probability is 0.
    See [`~hf_unlearn.losses.ceu_rows`]."""

    config_class = CEUConfig
    method = "ceu"
    paper = "2503.01224"

    def check_rows(self, args: CEUConfig, roles, tokenizer) -> None:
        labels = roles[FORGET].with_format(None)["labels"]
        counts = [sum(label != IGNORE_INDEX for label in row[1:]) for row in labels]
        short = [number for number, count in enumerate(counts) if count <= args.skip_tokens]
        if short:
            raise ValueError(
                f"skip_tokens={args.skip_tokens}, and {len(short)} of {len(counts)} forget rows have no more tokens "
                f"to predict than that, the first is row {short[0]}: nothing of them would be forgotten. Give a "
                "smaller `skip_tokens`, or leave these rows out."
            )

    @classmethod
    def needs_of(cls, args: CEUConfig):
        factors = LaterTokens(args.skip_tokens) if args.skip_tokens else None
        return {**super().needs_of(args), FORGET: Need(OfLabels(ceu_rows), factors=factors)}
