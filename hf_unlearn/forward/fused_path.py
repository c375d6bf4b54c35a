# SPDX-License-Identifier: Apache-2.0
"""From last hidden states through the LM head in tiles, at predicted tokens only."""

from torch import Tensor

from .. import fused
from ..fused import Head
from ..fused.predicted import Predicted
from .needs import REFERENCE
from .path import Forward, Values, function_values, picked_rows
from .role_rows import ReferenceRows


class FusedForward(Forward):
    """From last hidden states through the head, inside the model's own forward; no `[B, T, V]` anywhere."""

    fused = True

    def probe(self, model):
        return fused.check_head(model)[0]

    def policy_values(self, model, call, predicted, references):
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
