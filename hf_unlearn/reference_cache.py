# SPDX-License-Identifier: Apache-2.0
"""The reference's predictions, computed once before training and kept on disk for every later run that needs them.

Kept are a number a token (NPO and its kin) and, for KL, the last hidden state a token (`d` numbers, not `V`) beside
one frozen copy of the LM head, from which the whole distribution follows exactly.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from .cached_rows import CachedRows, Entry
from .data.formats import IGNORE_INDEX
from .forward import KL, ReferenceRows
from .fused import gathered_head, head_of
from .reference import Reference
from .store import Layout, Rows


HEAD = {"weight": "head.weight", "bias": "head.bias"}


class CachedReference(CachedRows, Reference):
    """Reference rows from a store on disk. The model that enters the trainer is its own reference, so the one pass
    that fills the store is made with the policy before its first step.

    Args:
        entry ([`~hf_unlearn.cached_rows.Entry`]):
            The run.
        needs (`Mapping[str, str]`):
            Role to what is kept of its rows.
    """

    name = "cache"
    progress = "Reference pass"

    def __init__(self, entry: Entry, needs: Mapping[str, str]):
        super().__init__(entry, needs)
        self.needs = dict(needs)
        # The reference's head; the policy's own stands in for it where that is not trained.
        self.head = None

    def rows(self, forward, policy, parts):
        if self.store is None:
            raise ValueError(
                "The cached reference is computed before training: call `train()`, or take reference='live' to "
                "compute losses outside of it."
            )
        found = {}
        for role, part in parts.items():
            values = self.store.read(self.array(role), part["index"])[0].to(part["index"].device, non_blocking=True)
            kl = self.needs[role] == KL
            found[role] = ReferenceRows(hidden=values, head=self.head) if kl else ReferenceRows(values)
        return found

    def prepare(self, trainer) -> None:
        super().prepare(trainer)
        layout = self.store.layout
        if self.head is None and HEAD["weight"] in layout:
            device = trainer.accelerator.device
            parts = {part: self.store.array(name).to(device) for part, name in HEAD.items() if name in layout}
            self.head = replace(head_of(trainer.model), **parts)

    def array(self, role: str) -> str:
        return f"{role}.{'hidden' if self.needs[role] == KL else 'logps'}"

    def layout(self, trainer) -> Layout:
        layout: dict[str, Rows] = {}
        for role, need in self.needs.items():
            predicted = [sum(label != IGNORE_INDEX for label in row[1:]) for row in self.roles[role]["labels"]]
            lengths, like = self.only_needed(role, predicted), trainer.hidden_like
            logps = Rows(lengths, (), torch.promote_types(trainer.model.dtype, torch.float32))
            layout[self.array(role)] = Rows(lengths, (like.shape[-1],), like.dtype) if need == KL else logps
        if self._keeps_head(trainer):
            with gathered_head(head_of(trainer.model)) as head:
                for part, name in HEAD.items():
                    if (tensor := getattr(head, part)) is not None:
                        layout[name] = Rows([tensor.shape[0]], tuple(tensor.shape[1:]), tensor.dtype)
        return layout

    def predict(self, trainer, role, batch):
        found = trainer.forward_path.reference(trainer.model_wrapped, {role: batch})[role]
        return found.hidden if self.needs[role] == KL else found.token_logps

    def write_shared(self, trainer, writer) -> None:
        if not self._keeps_head(trainer):
            return
        with gathered_head(head_of(trainer.model)) as head:
            for part, name in HEAD.items() if trainer.is_world_process_zero() else ():
                if (tensor := getattr(head, part)) is not None:
                    writer.write(name, [0], tensor.detach())

    def _keeps_head(self, trainer) -> bool:
        return KL in self.needs.values() and head_of(trainer.model).weight.requires_grad
