# SPDX-License-Identifier: Apache-2.0
"""The reference's predictions, computed once before training and kept on disk for every later run that needs the same.

Kept are a number a token (NPO and its kin) and, for KL, the last hidden state a token (`d` numbers, not `V`) beside one
frozen copy of the LM head, from which the whole distribution follows exactly.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .cache_key import cache_key, hash_rows, hash_tensors, hash_tokenizer
from .data.formats import IGNORE_INDEX
from .forward import KL, ReferenceRows
from .fused import gathered_head, head_of
from .modeling import evaluating
from .reference import Reference
from .store import Layout, Rows, Store, build, cache_root, required_bytes


logger = logging.getLogger(__name__)

HEAD = {"weight": "head.weight", "bias": "head.bias"}


class CachedReference(Reference):
    """Reference rows from a [`Store`], by row index. The model that enters the trainer is its own reference, so the one
    pass that fills the store is made with the policy before its first step.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The policy before training; its weights are hashed here.
        needs (`Mapping[str, str]`):
            Role to what is kept of its rows.
        roles (`Mapping[str, datasets.Dataset]`):
            Encoded rows of every role.
        tokenizer, args, collator:
            The run's.
    """

    name = "cache"

    def __init__(self, model: nn.Module, needs: Mapping[str, str], roles: Mapping, tokenizer, args, collator):
        self.needs, self.roles, self.args, self.collator = dict(needs), roles, args, collator
        self.store: Store | None = None
        self.head = None
        show = args.process_index == 0 and not args.disable_tqdm
        self.about = {
            "weights": hash_tensors(_whole_tensors(model), progress=show),
            "config": model.config.to_dict(),
            "rows": {role: hash_rows(roles[role]) for role in needs},
            "tokenizer": hash_tokenizer(tokenizer),
            "max_length": args.max_length,
            "trigger": {},
        }

    def prepare(self, trainer) -> None:
        """Opens the store, or fills it with one pass of the policy; called by all ranks when the model is wrapped.

        Raises:
            `DiskFullError`: if it does not fit.
            `ValueError`: if training has gone on and the store is gone.
        """
        if self.store is not None:
            return
        model, forward = trainer.model_wrapped, trainer.forward_path
        head = head_of(trainer.model) if KL in self.needs.values() else None
        keeps_head = head is not None and head.weight.requires_grad
        layout = self._layout(trainer, head if keeps_head else None)
        computed = {"autocast": trainer.accelerator.mixed_precision, "attention": trainer.model.config._attn_implementation}
        key = cache_key(**self.about, layout=layout, computed=computed)
        folder = cache_root(self.args.reference_cache_dir) / key
        if trainer.state.global_step and Store.find(folder) is None:
            raise ValueError(
                f"The reference's predictions are not in {folder}, and the model has trained since: they cannot be made "
                "again on resume. Start anew, or resume on the machine or `reference_cache_dir` that holds them."
            )
        if trainer.is_world_process_zero() and not folder.exists():
            logger.info("The reference's predictions take %.3g GB in %s.", required_bytes(layout) / 1e9, folder)
        fill = partial(self._fill, trainer, model, forward, head if keeps_head else None)
        self.store = build(folder, layout, fill)
        if keeps_head:
            device = trainer.accelerator.device
            parts = {part: self.store.array(name).to(device) for part, name in HEAD.items() if name in layout}
            self.head = replace(head, **parts)

    def rows(self, forward, policy, parts):
        if self.store is None:
            raise ValueError(
                "The cached reference is computed before training: call `train()`, or take reference='live' to compute "
                "losses outside of it."
            )
        found = {}
        for role, part in parts.items():
            name = self._array(role)
            values = self.store.read(name, part["index"])[0].to(part["index"].device, non_blocking=True)
            kl = self.needs[role] == KL
            found[role] = ReferenceRows(hidden=values, head=self.head) if kl else ReferenceRows(values)
        return found

    def _array(self, role: str) -> str:
        return f"{role}.{'hidden' if self.needs[role] == KL else 'logps'}"

    def _layout(self, trainer, head) -> Layout:
        """What is kept, and how large it is."""
        layout: dict[str, Rows] = {}
        for role, need in self.needs.items():
            lengths = [sum(label != IGNORE_INDEX for label in row[1:]) for row in self.roles[role]["labels"]]
            like = trainer.hidden_like
            logps = Rows(lengths, (), torch.promote_types(trainer.model.dtype, torch.float32))
            layout[self._array(role)] = Rows(lengths, (like.shape[-1],), like.dtype) if need == KL else logps
        if head is not None:
            with gathered_head(head) as whole:
                for part, name in HEAD.items():
                    tensor = getattr(whole, part)
                    if tensor is not None:
                        layout[name] = Rows([tensor.shape[0]], tuple(tensor.shape[1:]), tensor.dtype)
        return layout

    def _fill(self, trainer, model, forward, head, writer) -> None:
        first = trainer.is_world_process_zero()
        if head is not None:
            with gathered_head(head) as whole:
                for part, name in HEAD.items() if first else ():
                    if getattr(whole, part) is not None:
                        writer.write(name, [0], getattr(whole, part).detach())
        batches = [(role, batch) for role in self.needs for batch in self._batches(role, trainer.accelerator)]
        for role, batch in tqdm(batches, desc="Reference pass", unit="batch", disable=not first or self.args.disable_tqdm):
            writer.write(self._array(role), batch, self._predict(model, forward, role, batch))

    def _batches(self, role: str, accelerator) -> Iterator[list[int]]:
        """This rank's rows, longest first; every rank has as many batches, for sharded models run in step."""
        size = self.args.per_device_eval_batch_size
        lengths = [len(ids) for ids in self.roles[role]["input_ids"]]
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        share = math.ceil(len(order) / accelerator.num_processes)
        # Ranks that would run short write their first row again, with the same values.
        own = (order[accelerator.process_index :: accelerator.num_processes] or order[:1])[:share]
        own += own[:1] * (share - len(own))
        return (own[i : i + size] for i in range(0, share, size))

    @torch.no_grad()
    def _predict(self, model, forward, role: str, indices: list[int]) -> Tensor:
        batch = self.collator.pad([self.roles[role][i] for i in indices])
        batch = {key: value.to(self.args.device) for key, value in batch.items()}
        with evaluating(model):
            found = forward.reference(model, {role: batch})[role]
        return found.hidden if self.needs[role] == KL else found.token_logps


def _whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all weights; sharded ones are gathered one at a time, by all ranks."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if hasattr(tensor, "ds_id"):
            from deepspeed.zero import GatheredParameters

            with GatheredParameters([tensor]):
                yield name, tensor.data
        else:
            yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
