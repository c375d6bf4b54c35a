# SPDX-License-Identifier: Apache-2.0
"""From last hidden states through the LM head in tiles, at predicted tokens only."""

from contextlib import nullcontext
from functools import partial

from torch import Tensor

from .. import fused
from ..fused import Head
from ..fused.predicted import Predicted
from .lens import every_layer, layers_at, lens_logps
from .needs import REFERENCE
from .path import Forward, Values, function_values, picked_rows
from .role_rows import ReferenceRows


class FusedForward(Forward):
    """From last hidden states through the head, inside the model's own forward; no `[B, T, V]` anywhere."""

    fused = True

    def probe(self, model):
        self.find_norm(model)
        return fused.check_head(model)[0]

    def policy_values(self, model, call, predicted, references):
        asking = any(self.needs[role].lens for role in call.picks)
        norm = self.find_norm(model)
        with every_layer(model) if asking else nullcontext({}) as taken:
            return self._values(model, call, predicted, references, norm, taken)

    def _values(self, model, call, predicted, references, norm, taken) -> Values:
        def compute(hidden: Tensor, head: Head) -> Values:
            values: Values = {}
            for role, picked in picked_rows(hidden, call):
                labels, need = predicted[role].targets, self.needs[role]
                if need.function is not None:
                    said = references.get(role, {}) if need.compares else {}
                    values |= self._function_values(role, picked, head, predicted[role], said)
                elif need.kl:
                    ref = references[role][REFERENCE]
                    loss, logps = fused.row_kl_to_reference(picked, head, ref.hidden, ref.head or head, labels)
                    values |= {(role, "kl"): loss, (role, "logps"): logps}
                elif need.lens:
                    states = layers_at(taken, call.picks[role])
                    values |= self._lens_values(role, picked, head, predicted[role], norm, states)
                else:
                    values[role, "logps"] = fused.row_logps(picked, labels, head)
            return values

        return fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)

    def _function_values(self, role: str, hidden: Tensor, head: Head, tokens: Predicted, said) -> Values:
        need = self.needs[role]
        others = {name: (rows.hidden, rows.head or head) for name, rows in said.items()}
        ref_hidden, ref_head = others.pop(REFERENCE, (None, None))

        def apply(weights: Tensor | None = None):
            return fused.row_values(
                hidden,
                head,
                need.function,
                tokens.targets,
                ref_hidden,
                ref_head,
                weights=weights,
                columns=need.columns,
                factors=need.factors_of(tokens),
                others=others,
            )

        return function_values(role, apply, need, tokens, hidden)

    def _lens_values(self, role: str, hidden: Tensor, head: Head, tokens: Predicted, norm, states: Tensor) -> Values:
        logps = lens_logps(states, hidden, norm, tokens.targets, partial(fused.row_logps, head=head))
        return {(role, "layer_states"): states, (role, "layer_logps"): logps, (role, "logps"): logps[:, -1]}

    def reference_rows(self, model, call, predicted):
        heads = []

        def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
            heads.append(head)
            return {
                role: picked if self.needs[role].whole else fused.row_logps(picked, predicted[role].targets, head)
                for role, picked in picked_rows(hidden, call)
            }

        values = fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)
        return {
            role: ReferenceRows(hidden=value, head=heads[-1]) if self.needs[role].whole else ReferenceRows(value)
            for role, value in values.items()
        }
