# SPDX-License-Identifier: Apache-2.0
"""Forget terms that compare whole predictions with labels: a function a token, and the trainer that takes its mean."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..data.role_table import FORGET
from ..families.base import CAUSAL_LM
from ..forward.role_rows import RoleRows
from ..fused import TileRows
from ..stored.row_cache import Entry
from ..training.trainer import UnlearnTrainer


@dataclass(frozen=True)
class OfLabels:
    """A [`Need`]'s function from a loss of logits and labels.

    Args:
        rows (`Callable`): from logits `[n, V]` and labels `[n]` to `[n]`, such as [`~hf_unlearn.losses.ihl_rows`].
    """

    rows: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        return self.rows(logits, at.labels), {"logps": -at.nll(logits.detach())}


class LabelRowsTrainer(UnlearnTrainer):
    """The forget term is the value of its need's function: a mean over a row's tokens, then over rows. A label is one
    token, which a classifier's soft labels are not."""

    families = (CAUSAL_LM,)

    def forget_loss(self, rows: RoleRows) -> Tensor:
        return rows.value


class PredictionRowsTrainer(LabelRowsTrainer):
    """The function looks at predictions as a whole, among the tokenizer's tokens: what only pads the head is none."""

    def setup(self, entry: Entry) -> None:
        self._tokens = self.family.predictions(entry.model, entry.tokenizer)

    def build_forward(self, model, args, needs, shape):
        needs = {**needs, FORGET: replace(needs[FORGET], columns=self._tokens)}
        return super().build_forward(model, args, needs, shape)
