# SPDX-License-Identifier: Apache-2.0
"""Forget rows up to the layer that the head reads, and no further; rows that a term keeps, through the whole model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...forward.layer import LayerForward, LayerRows
from ...forward.needs import STATES
from ...forward.path import Forward


class AlignForward(Forward):
    """Two paths, chosen by role.

    Args:
        layer (`int`): whose output the head reads.
        roles (`Mapping`): all roles.
        kept (`Forward`, *optional*): the path of the roles in its `needs`.
        whole (`bool`): run the whole model for forget rows too; slower, to check against.
    """

    def __init__(self, layer: int, roles: Mapping, kept: Forward | None, whole: bool = False):
        self.layers = LayerForward(layer, dict.fromkeys(roles, STATES), "split", whole=whole)
        self.kept = kept
        kept_needs = {} if kept is None else kept.needs
        super().__init__({**self.layers.needs, **kept_needs}, "split")
        self.fused = kept is not None and kept.fused

    @property
    def prefix(self):
        return self.layers.prefix

    @prefix.setter
    def prefix(self, value) -> None:
        for path in filter(None, (self.layers, self.kept)):
            path.prefix = value

    @property
    def shifts(self):
        return self.layers.shifts

    @shifts.setter
    def shifts(self, value) -> None:
        for path in filter(None, (self.layers, self.kept)):
            path.shifts = value

    def ends_for(self, role):
        return (self.kept if self.kept is not None and role in self.kept.needs else self.layers).ends_for(role)

    def policy(self, model, parts, references):
        own, kept = self._apart(parts)
        found = self.layers.policy(model, own, {}) if own else {}
        return found | (self.kept.policy(model, kept, references) if kept else {})

    def reference(self, model, parts):
        own, kept = self._apart(parts)
        found = self.layers.reference(model, own) if own else {}
        return found | (self.kept.reference(model, kept) if kept else {})

    def states(self, model: nn.Module, role: str, part: Mapping[str, Tensor]) -> LayerRows:
        """The layer's output for rows of any role."""
        return self.layers.policy(model, {role: part}, {})[role]

    def probe(self, model: nn.Module) -> Tensor:
        if self.kept is not None:
            self.kept.probe(model)
        return self.layers.probe(model)

    def _apart(self, parts) -> tuple[dict, dict]:
        kept = {role: part for role, part in parts.items() if self.kept is not None and role in self.kept.needs}
        return {role: part for role, part in parts.items() if role not in kept}, kept


class StageStates:
    """A layer's output for rows while the model does not train: computed once a stage where rows come back.

    Args:
        path ([`AlignForward`]): the run's.
        roles (`Mapping[str, datasets.Dataset]`): encoded rows.
        collator ([`~hf_unlearn.data.collator.RoleCollator`]): pads them.
    """

    def __init__(self, path: AlignForward, roles: Mapping, collator):
        self.path, self.roles, self.collator = path, roles, collator
        self.known: dict[tuple[str, int], Tensor] = {}

    def fill(self, model: nn.Module, needed: Mapping[str, list[int]], batch_size: int, device) -> None:
        """Computes the states of rows, in batches that do not depend on where the stage was entered."""
        for role, rows in needed.items():
            order = sorted(rows, key=lambda i: -len(self.roles[role][i]["input_ids"]))
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                part = self.collator.pad([self.roles[role][i] for i in chosen])
                part["index"] = torch.tensor(chosen)
                part = {name: values.to(device) for name, values in part.items()}
                for i, states in zip(chosen, self._computed(model, role, part), strict=True):
                    self.known[role, i] = states.cpu()

    def clear(self) -> None:
        self.known.clear()

    def of(self, model: nn.Module, role: str, part: Mapping[str, Tensor]) -> list[Tensor]:
        """States of a batch's rows, a tensor `[T, d]` a row."""
        keys = [(role, i) for i in part["index"].tolist()]
        if all(key in self.known for key in keys):
            device = part["input_ids"].device
            return [self.known[key].to(device, non_blocking=True) for key in keys]
        return self._computed(model, role, part)

    @torch.no_grad()
    def _computed(self, model, role, part) -> list[Tensor]:
        rows = self.path.states(model, role, part)
        return list(rows.states.split(part["attention_mask"].sum(1).tolist()))
