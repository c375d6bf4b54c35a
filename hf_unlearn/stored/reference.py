# SPDX-License-Identifier: Apache-2.0
"""The reference's predictions, computed once before training and kept on disk for every later run that needs them.

Kept are a number a token (NPO and its kin) and, for KL, the last hidden state a token (`d` numbers, not `V`) beside
one frozen copy of the LM head, from which the whole distribution follows exactly.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..data.formats import IGNORE_INDEX
from ..forward.needs import Needs
from ..forward.rows import ReferenceRows
from ..fused import gathered_head, head_of
from ..reference import Reference
from .rows import CachedRows, Entry
from .store import Layout, Rows


HEAD = {"weight": "head.weight", "bias": "head.bias"}


class CachedReference(CachedRows, Reference):
    """Reference rows from a store on disk. The model that enters the trainer is its own reference, so the one pass
    that fills the store is made with the policy before its first step.

    Args:
        entry ([`~hf_unlearn.stored.rows.Entry`]):
            The run.
        needs (`Mapping[str, str]`):
            Role to what is kept of its rows.
        as_entered (`Callable`, *optional*):
            Gives a context in which the policy is the model as it entered, where it is not so by itself.
        computed:
            What else decides the values.
    """

    name = "cache"
    reads_along = False
    progress = "Reference pass"

    def __init__(
        self,
        entry: Entry,
        needs: Needs,
        as_entered: Callable[[], AbstractContextManager] = nullcontext,
        **computed,
    ):
        super().__init__(entry, needs, **computed)
        self.needs, self.as_entered = dict(needs), as_entered
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
            kept = {name: self.values(role, name, part["index"]) for name in self.needs[role].kept}
            found[role] = ReferenceRows(**kept, head=self.head if "hidden" in kept else None)
        return found

    def prepare(self, trainer) -> None:
        super().prepare(trainer)
        layout = self.store.layout
        if self.head is None and HEAD["weight"] in layout:
            device = trainer.accelerator.device
            parts = {part: self.store.array(name).to(device) for part, name in HEAD.items() if name in layout}
            self.head = replace(head_of(trainer.model), **parts)

    def lengths(self, role: str) -> dict[str, list[int]]:
        rows = self.roles[role]
        predicted = [sum(label != IGNORE_INDEX for label in row[1:]) for row in rows["labels"]]
        real = [len(ids) for ids in rows["input_ids"]]
        return {name: real if name == "states" else predicted for name in self.needs[role].kept}

    def like(self, trainer) -> dict[str, Tensor]:
        logps = torch.empty(0, dtype=torch.promote_types(trainer.model.dtype, torch.float32))
        return {"token_logps": logps, "hidden": trainer.states_like, "states": trainer.states_like}

    def layout(self, trainer) -> Layout:
        layout = dict(super().layout(trainer))
        if self._keeps_head(trainer):
            with gathered_head(head_of(trainer.model)) as head:
                for part, name in HEAD.items():
                    if (tensor := getattr(head, part)) is not None:
                        layout[name] = Rows([tensor.shape[0]], tuple(tensor.shape[1:]), tensor.dtype)
        return layout

    def predict(self, trainer, role, batch):
        with self.as_entered():
            found = trainer.forward_path.reference(trainer.model_wrapped, {role: batch})[role]
        return {name: getattr(found, name) for name in self.needs[role].kept}

    def write_shared(self, trainer, writer) -> None:
        if not self._keeps_head(trainer):
            return
        with gathered_head(head_of(trainer.model)) as head:
            for part, name in HEAD.items() if trainer.is_world_process_zero() else ():
                if (tensor := getattr(head, part)) is not None:
                    # A copy: FSDP2 frees gathered weights by resizing their storage, which numpy forbids for good.
                    writer.write(name, [0], tensor.detach().clone())

    def _keeps_head(self, trainer) -> bool:
        divergence = any("hidden" in need.kept for need in self.needs.values())
        return divergence and head_of(trainer.model).weight.requires_grad
