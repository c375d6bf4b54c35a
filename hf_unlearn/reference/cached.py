# SPDX-License-Identifier: Apache-2.0
"""A frozen model's predictions, computed once before training and kept on disk for every later run that needs them.

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
from ..forward.path import Forward
from ..forward.role_rows import ReferenceRows
from ..fused import gathered_head, head_of
from ..stored.row_cache import CachedRows, Entry, RunStart
from ..stored.store import Layout, Rows
from .base import Reference
from .live import LiveReference


HEAD = {"weight": "head.weight", "bias": "head.bias"}


class CachedReference(CachedRows, Reference):
    """Reference rows from a store on disk. The model that enters the trainer is its own reference, so the one pass
    that fills the store is made with the policy before its first step; of another model, with that one, which is let
    go of afterwards.

    Args:
        entry ([`~hf_unlearn.stored.row_cache.Entry`]):
            The run, of the model whose predictions are kept.
        needs (`Needs`):
            Role to what is kept of its rows.
        forward ([`~hf_unlearn.forward.path.Forward`]):
            The path to use.
        as_entered (`Callable`, *optional*):
            Gives a context in which the policy is the model as it entered, where it is not so by itself.
        source ([`LiveReference`], *optional*):
            The model, where it is another than the policy.
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
        forward: Forward,
        as_entered: Callable[[], AbstractContextManager] = nullcontext,
        source: LiveReference | None = None,
        **computed,
    ):
        super().__init__(entry, needs, **computed)
        self.needs, self.forward, self.as_entered, self.source = dict(needs), forward, as_entered, source
        self.repeatable = self.keeps_head = source is not None
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

    def prepare(self, start: RunStart) -> None:
        if self.store is not None:
            return
        if self.source is not None:
            self.source.open(start.accelerator)
            start = replace(start, model=self.source.model, core=self.entry.model)
        super().prepare(start)
        layout = self.store.layout
        if HEAD["weight"] in layout:
            device = start.accelerator.device
            parts = {part: self.store.array(name).to(device) for part, name in HEAD.items() if name in layout}
            self.head = replace(head_of(start.core), **parts)
        if self.source is not None:
            # Its predictions are all that is read of it.
            self.source = self.entry.model = None

    def lengths(self, role: str) -> dict[str, list[int]]:
        rows = self.roles[role]
        predicted = [sum(label != IGNORE_INDEX for label in row[1:]) for row in rows["labels"]]
        real = [len(ids) for ids in rows["input_ids"]]
        return {name: real if name == "states" else predicted for name in self.needs[role].kept}

    def like(self, start) -> dict[str, Tensor]:
        logps = torch.empty(0, dtype=torch.promote_types(start.core.dtype, torch.float32))
        states = start.states_like if self.source is None else self.forward.probe(start.model)
        return {"token_logps": logps, "hidden": states, "states": states}

    def layout(self, start) -> Layout:
        layout = dict(super().layout(start))
        if self._keeps_head(start):
            with gathered_head(head_of(start.core)) as head:
                for part, name in HEAD.items():
                    if (tensor := getattr(head, part)) is not None:
                        layout[name] = Rows([tensor.shape[0]], tuple(tensor.shape[1:]), tensor.dtype)
        return layout

    def predict(self, start, role, batch):
        with self.as_entered():
            found = self.forward.reference(start.model, {role: batch})[role]
        return {name: getattr(found, name) for name in self.needs[role].kept}

    def write_shared(self, start, writer) -> None:
        if not self._keeps_head(start):
            return
        with gathered_head(head_of(start.core)) as head:
            for part, name in HEAD.items() if start.accelerator.is_main_process else ():
                if (tensor := getattr(head, part)) is not None:
                    # A copy: FSDP2 frees gathered weights by resizing their storage, which numpy forbids for good.
                    writer.write(name, [0], tensor.detach().clone())

    def _keeps_head(self, start) -> bool:
        divergence = any("hidden" in need.kept for need in self.needs.values())
        return divergence and (self.keeps_head or head_of(start.core).weight.requires_grad)
