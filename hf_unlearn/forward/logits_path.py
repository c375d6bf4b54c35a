# SPDX-License-Identifier: Apache-2.0
"""From the model's logits `[B, T, V]`: for models whose head cannot be taken apart, and to check the fused path."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .. import losses
from ..fused import TileRows
from ..fused.predicted import Predicted
from .head_input import inputs_of
from .lens import every_layer, layers_at, layers_to_head
from .needs import REFERENCE
from .passes import Pass
from .path import Forward, Values, function_values, picked_rows
from .role_rows import ReferenceRows


class LogitsForward(Forward):
    """From the model's logits."""

    # How labels are read.
    rows_type = TileRows

    def probe(self, model):
        self.find_norm(model)

    def policy_values(self, model, call, predicted, references):
        asking = [role for role in call.picks if self.needs[role].lens]
        if not asking:
            return self._values(call, predicted, references, *self._logits_and_states(model, call))
        norm = self.find_norm(model)
        with every_layer(model) as taken, layers_to_head(self.reader(model)[0], norm, taken):
            logits, states = self._logits_and_states(model, call)
        own, *blocks = logits.chunk(len(taken))
        values = self._values(call, predicted, references, own, states)
        for role in asking:
            labels = self.rows_type(predicted[role].targets)
            read = [block.flatten(0, 1).index_select(0, call.picks[role]) for block in (*blocks, own)]
            values[role, "layer_logps"] = torch.stack([-labels.nll(block) for block in read], dim=1)
            values[role, "layer_states"] = layers_at(taken, call.picks[role])
        return values

    def _values(self, call, predicted, references, logits: Tensor, states) -> Values:
        values: Values = {}
        for role, own in picked_rows(logits, call):
            need = self.needs[role]
            if need.function is not None:
                said = references.get(role, {}) if need.compares else {}
                values |= self._function_values(role, own, states.get(role), predicted[role], said)
                continue
            at = self.rows_type(predicted[role].targets, references[role][REFERENCE].logits if need.kl else None)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not need.kl):
                values[role, "logps"] = -at.nll(own)
            if need.kl:
                values[role, "kl"] = at.distillation(own).sum() / max(len(own), 1)
        return values

    def _function_values(self, role: str, logits: Tensor, states, tokens: Predicted, said) -> Values:
        need = self.needs[role]

        def apply(weights: Tensor | None = None):
            seen = {name: rows.logits[:, : need.columns] for name, rows in said.items()}
            own = losses.at_least_float32(logits[:, : need.columns])
            at = self.rows_type(tokens.targets, seen.pop(REFERENCE, None), weights, seen)
            values, stats = need.function(own, at)
            return (values * need.factors_of(tokens)).sum(), stats

        return function_values(role, apply, need, tokens, states)

    def reference_rows(self, model, call, predicted):
        logits, states = self._logits_and_states(model, call)
        return {
            role: ReferenceRows(logits=found, hidden=states.get(role))
            if self.needs[role].whole
            else ReferenceRows(-self.rows_type(predicted[role].targets).nll(found))
            for role, found in picked_rows(logits, call)
        }

    def _logits_and_states(self, model: nn.Module, call: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, T, V]`, and the head's inputs `[N, d]` of the roles that ask for states."""
        asking = {role for role in call.picks if self.needs[role].states}
        with inputs_of(self.reader(model)[0]) if asking else nullcontext([]) as inputs:
            logits = model(**call.inputs, use_cache=False).logits
        states = picked_rows(inputs[-1], call) if asking else ()
        return logits, {role: found for role, found in states if role in asking}
