# SPDX-License-Identifier: Apache-2.0
"""From last hidden states through the LM head in tiles, at predicted tokens only."""

from torch import Tensor

from .. import fused
from ..fused import Head
from ..fused.predicted import Predicted
from .needs import KL, RowFunction, of_whole_prediction
from .path import Forward, named_values, picked_rows
from .rows import ReferenceRows


class FusedForward(Forward):
    """From last hidden states through the head, inside the model's own forward; no `[B, T, V]` anywhere."""

    fused = True

    def probe(self, model):
        return fused.check_head(model)[0]

    def _policy_values(self, model, call, predicted, references):
        def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
            values = {}
            for role, picked in picked_rows(hidden, call):
                labels, need = predicted[role].targets, self.needs[role]
                if isinstance(need, RowFunction):
                    values |= self._function_values(role, picked, head, predicted[role], references.get(role))
                elif need == KL:
                    ref = references[role]
                    loss, logps = fused.row_kl_to_reference(picked, head, ref.hidden, ref.head or head, labels)
                    values |= {f"{role}.kl": loss, f"{role}.logps": logps}
                else:
                    values[f"{role}.logps"] = fused.row_logps(picked, labels, head)
            return values

        return fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)

    def _function_values(self, role: str, hidden: Tensor, head: Head, tokens: Predicted, ref) -> dict[str, Tensor]:
        need, compared = self.needs[role], {}
        if need.compares:
            compared = {"ref_hidden": ref.hidden, "ref_head": ref.head or head}

        def apply(weights: Tensor | None = None):
            return fused.row_values(
                hidden,
                head,
                need.function,
                tokens.targets,
                **compared,
                weights=weights,
                columns=need.columns,
                factors=tokens.row_weights,
            )

        return named_values(role, apply, need, tokens, hidden)

    def _reference_rows(self, model, call, predicted):
        heads = []

        def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
            heads.append(head)
            return {
                role: picked
                if of_whole_prediction(self.needs[role])
                else fused.row_logps(picked, predicted[role].targets, head)
                for role, picked in picked_rows(hidden, call)
            }

        values = fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)
        return {
            role: ReferenceRows(hidden=value, head=heads[-1])
            if of_whole_prediction(self.needs[role])
            else ReferenceRows(value)
            for role, value in values.items()
        }
