# SPDX-License-Identifier: Apache-2.0
"""From the model's logits `[B, T, V]`: for models whose head cannot be taken apart, and to check the fused path."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .. import losses
from ..fused import TileRows
from ..fused.predicted import Predicted
from .head_input import inputs_of
from .needs import KL, RowFunction, of_whole_prediction
from .passes import Pass
from .path import Forward, named_values, picked_rows
from .rows import ReferenceRows


class LogitsForward(Forward):
    """From the model's logits."""

    # How labels are read.
    rows_type = TileRows

    def _policy_values(self, model, call, predicted, references):
        values = {}
        logits, states = self._logits_and_states(model, call)
        for role, own in picked_rows(logits, call):
            need = self.needs[role]
            if isinstance(need, RowFunction):
                ref = references.get(role)
                values |= self._function_values(role, own, states.get(role), predicted[role], ref)
                continue
            kl = need == KL
            at = self.rows_type(predicted[role].targets, references[role].logits if kl else None)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not kl):
                values[f"{role}.logps"] = -at.nll(own)
            if kl:
                values[f"{role}.kl"] = at.distillation(own).sum() / max(len(own), 1)
        return values

    def _function_values(self, role: str, logits: Tensor, states, tokens: Predicted, ref) -> dict[str, Tensor]:
        need = self.needs[role]

        def apply(weights: Tensor | None = None):
            ref_logits = ref.logits[:, : need.columns] if need.compares else None
            own = losses.at_least_float32(logits[:, : need.columns])
            values, stats = need.function(own, self.rows_type(tokens.targets, ref_logits, weights))
            return (values * tokens.row_weights).sum(), stats

        return named_values(role, apply, need, tokens, states)

    def _reference_rows(self, model, call, predicted):
        logits, states = self._logits_and_states(model, call)
        return {
            role: ReferenceRows(logits=found, hidden=states.get(role))
            if of_whole_prediction(self.needs[role])
            else ReferenceRows(-self.rows_type(predicted[role].targets).nll(found))
            for role, found in picked_rows(logits, call)
        }

    def _logits_and_states(self, model: nn.Module, call: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, T, V]`, and the head's inputs `[N, d]` of the roles that ask for states."""
        asking = {role for role in call.picks if getattr(self.needs[role], "states", False)}
        with inputs_of(self.reader(model)[0]) if asking else nullcontext([]) as inputs:
            logits = model(**call.inputs, use_cache=False).logits
        states = picked_rows(inputs[-1], call) if asking else ()
        return logits, {role: found for role, found in states if role in asking}
