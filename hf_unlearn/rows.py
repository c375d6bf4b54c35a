# SPDX-License-Identifier: Apache-2.0
"""What a method sees of one role: its rows, what the model says of them, and what the reference said."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from . import losses


@dataclass
class RoleRows:
    """Rows of one role inside the shared forward pass.

    Args:
        batch (`Mapping[str, Tensor]`):
            `input_ids`, `attention_mask`, `labels` `[B, T]` and `index` `[B]` of the role's rows.
        logits (`Tensor`):
            `[B, T, V]`, the policy's.
        ref_logits (`Tensor`, *optional*):
            `[B, T, V]`, the reference's, for the roles a method asked for in `reference_roles`.
    """

    batch: Mapping[str, Tensor]
    logits: Tensor
    ref_logits: Tensor | None = None

    @cached_property
    def token_logps(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities and mask of predicted tokens, both `[B, T-1]`."""
        return losses.per_token_logps(self.logits, self.batch["labels"])

    @property
    def logps(self) -> Tensor:
        """Log-probability of each row's labels, `[B]`, sums over tokens."""
        return self.token_logps[0].sum(-1)

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood, mean over the role's predicted tokens; a scalar."""
        logps, mask = self.token_logps
        return -losses.masked_mean(logps, mask)

    @cached_property
    def ref_logps(self) -> Tensor:
        """The reference's log-probability of each row's labels, `[B]`."""
        return losses.sequence_logps(self.ref_logits, self.batch["labels"])

    @cached_property
    def kl_to_reference(self) -> Tensor:
        """KL(reference || model), mean over the positions that predict a label; a scalar."""
        mask = losses.prediction_mask(self.batch["labels"])
        return losses.kl_to_reference(self.logits, self.ref_logits, mask)
