# SPDX-License-Identifier: Apache-2.0
"""What a model says of its training rows before it is trained, computed once and kept in a store."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..cache import cache_root
from ..modeling import evaluating
from ..models.wrappers import beside_weights
from .build import build
from .key import cache_key, hash_json, hash_rows, hash_tensors, hash_tokenizer
from .store import Layout, Rows, Store, required_bytes


logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """A run as it begins: what cached values depend on, and the rows they are of.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The policy before training.
        roles (`Mapping[str, datasets.Dataset]`):
            Encoded rows of every role.
        needed (`Mapping[str, Sequence[int]]`):
            Rows that training will see; the values of others are not computed.
        tokenizer, args, collator:
            The run's.
        given (`Mapping[str, datasets.Dataset]`):
            The rows as they were given, encoded: a method may train on forget rows with other labels.
    """

    model: nn.Module
    roles: Mapping
    needed: Mapping[str, Sequence[int]]
    tokenizer: object
    args: object
    collator: object
    given: Mapping = field(default_factory=dict)

    @property
    def shows_progress(self) -> bool:
        return self.args.process_index == 0 and not self.args.disable_tqdm

    def of(self, model: nn.Module) -> "Entry":
        """The same rows under another model."""
        return replace(self, model=model)

    @cached_property
    def weights(self) -> str:
        """Hash of the weights, which must be taken before they train."""
        return hash_tensors(_whole_tensors(self.model), progress=self.shows_progress)

    @property
    def identity(self) -> str:
        """The weights, and a hash of what adapters and a wrapper do with theirs, if there are any."""
        beside = beside_weights(self.model)
        return f"{self.weights}-{hash_json(beside)[:16]}" if beside else self.weights


@dataclass(frozen=True)
class RunStart:
    """A run as its first step is due: its model is placed and wrapped.

    Args:
        model (`nn.Module`): the policy as it is called, wrapped.
        core (`nn.Module`): the same, without what wraps it.
        accelerator (`Accelerator`): the run's.
        step (`int`): optimizer steps done, above 0 after a resume.
        states_like (`Tensor`, *optional*): any `[N, d]` of a token's states, where some are read.
        trainer (`UnlearnTrainer`, *optional*): the run, for what takes the method's own terms.
    """

    model: nn.Module
    core: nn.Module
    accelerator: object
    step: int
    states_like: Tensor | None
    trainer: object = None


class CachedRows:
    """Values of rows, by role and row index. A subclass says what is kept (`lengths`) and how it is computed
    (`predict`).

    Args:
        entry ([`Entry`]):
            The run; its weights are hashed here.
        roles (`Iterable[str]`):
            Roles whose values are kept.
        computed:
            What else decides the values; part of the key.
    """

    progress: str
    # Whether the values can be computed once the policy has trained.
    repeatable = False

    def __init__(self, entry: Entry, roles: Iterable[str], **computed):
        self.entry, self.args, self.computed = entry, entry.args, {**computed, **beside_weights(entry.model)}
        self.roles = {role: entry.roles[role] for role in roles}
        self.store: Store | None = None
        self.about = {
            "weights": entry.weights,
            "config": entry.model.config.to_dict(),
            "rows": {role: hash_rows(rows) for role, rows in self.roles.items()},
            "tokenizer": hash_tokenizer(entry.tokenizer),
            "max_length": entry.args.max_length,
            "trigger": _trigger(entry),
        }

    def lengths(self, role: str) -> dict[str, list[int]]:
        """What is kept of a role's rows: name to the number of values of each row."""
        raise NotImplementedError

    def predict(self, start: RunStart, role: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values of a batch's rows by the names in `lengths`, one row after the other; in evaluation mode and
        without gradients."""
        raise NotImplementedError

    def like(self, start: RunStart) -> dict[str, Tensor]:
        """Name to any tensor `[N, ...]` that has the width and dtype of its values; called by all ranks."""
        raise NotImplementedError

    def layout(self, start: RunStart) -> Layout:
        """What is kept, and how large it is; called by all ranks."""
        like = self.like(start)
        return {
            f"{role}.{name}": Rows(self.only_needed(role, lengths), tuple(like[name].shape[1:]), like[name].dtype)
            for role in self.roles
            for name, lengths in self.lengths(role).items()
        }

    def values(self, role: str, name: str, index: Tensor) -> Tensor:
        """What is kept of rows, one after the other, on the device of `index`."""
        return self.store.read(f"{role}.{name}", index)[0].to(index.device, non_blocking=True)

    def write_shared(self, start: RunStart, writer) -> None:
        """Writes what belongs to no row; called by all ranks."""

    def prepare(self, start: RunStart) -> None:
        """Opens the store, or fills it with one pass of the policy; called by all ranks when the model is wrapped.

        Raises:
            `DiskFullError`: if it does not fit.
            `ValueError`: if training has gone on and the store is gone.
        """
        if self.store is not None:
            return
        with evaluating(start.model), torch.no_grad():
            layout = self.layout(start)
        computed = {
            "autocast": start.accelerator.mixed_precision,
            "attention": self.entry.model.config._attn_implementation,
            "needed": {role: hash_rows([{"input_ids": self.entry.needed[role], "labels": []}]) for role in self.roles},
            **self.computed,
        }
        key = cache_key(**self.about, layout=layout, computed=computed)
        root = self.args.reference_cache_dir or cache_root() / "reference"
        folder = Path(root).expanduser().absolute() / key
        missing = Store.find(folder) is None
        if start.step and missing and not self.repeatable:
            raise ValueError(
                f"{self.progress}: the values computed before training are not in {folder}, and cannot be made again "
                "on resume, for the model has trained since. Start anew, or resume where `reference_cache_dir` holds "
                "them."
            )
        if start.accelerator.is_main_process and missing:
            logger.info("%s: values of %.3g GB are kept in %s.", self.progress, required_bytes(layout) / 1e9, folder)
        self.store = build(folder, layout, lambda writer: self._fill(start, writer))

    def batch(self, role: str, indices: list[int]) -> dict[str, Tensor]:
        """Rows of one role, padded, on the device, with their indices."""
        batch = self.entry.collator.pad([self.roles[role][i] for i in indices])
        batch["index"] = torch.tensor(indices)
        return {key: value.to(self.args.device) for key, value in batch.items()}

    def only_needed(self, role: str, lengths: list[int]) -> list[int]:
        """`lengths` with 0 for rows that training will not see."""
        needed = set(self.entry.needed[role])
        return [length if i in needed else 0 for i, length in enumerate(lengths)]

    def _fill(self, start: RunStart, writer) -> None:
        self.write_shared(start, writer)
        batches = [(role, rows) for role in self.roles for rows in self._own_batches(role, start.accelerator)]
        with evaluating(start.model), torch.no_grad():
            for role, rows in tqdm(batches, desc=self.progress, unit="batch", disable=not self.entry.shows_progress):
                for name, values in self.predict(start, role, self.batch(role, rows)).items():
                    writer.write(f"{role}.{name}", rows, values)

    def _own_batches(self, role: str, accelerator) -> Iterator[list[int]]:
        """This rank's rows, longest first; every rank has as many batches, for sharded models run in step."""
        size = self.args.per_device_eval_batch_size
        lengths = [len(ids) for ids in self.roles[role]["input_ids"]]
        order = sorted(self.entry.needed[role], key=lambda i: -lengths[i])
        share = math.ceil(len(order) / accelerator.num_processes)
        own = order[accelerator.process_index :: accelerator.num_processes] or order[:1]
        # Ranks that would run short write a row again, with the same values.
        own += own[:1] * (share - len(own))
        return (own[i : i + size] for i in range(0, share, size))


def _trigger(entry: Entry) -> dict:
    trigger = entry.args.trigger
    return {} if trigger is None or "poisoned" not in entry.roles else asdict(trigger)


def _whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all weights; sharded ones are gathered one at a time, by all ranks."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if hasattr(tensor, "ds_id"):
            from deepspeed.runtime.zero.partition_parameters import GatheredParameters

            with GatheredParameters([tensor]):
                yield name, tensor.data
        else:
            yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
