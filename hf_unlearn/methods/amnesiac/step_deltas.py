# SPDX-License-Identifier: Apache-2.0
"""What the optimizer steps that saw sensitive rows did to the weights: recorded while the original is trained, so that
it can be taken back (https://huggingface.co/papers/2010.10981)."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...checks import check_choice
from ...files import read_json, whole_file, write_text
from .sensitive_rows import finder_of


logger = logging.getLogger(__name__)

RECORD, SUM = "record.json", "amnesiac_sum.safetensors"
KEEPS = ("sum", "steps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Weights of each tensor by which a checkpoint is recognised.
SAMPLE = 16


class AmnesiacRecorder(TrainerCallback):
    r"""Records \\( \Delta_s = w_{after} - w_{before} \\) of every optimizer step that saw a sensitive row, in any of
    its micro-batches and on any process. For any trainer of transformers or TRL:

    ```python
    recorder = AmnesiacRecorder("runs/original/record", sensitive=rows)
    trainer = SFTTrainer(model, args, train_dataset=dataset, callbacks=[recorder])
    ```

    Sensitive rows are identified in the model's inputs: by their tokens, padded or packed, for classifiers by
    tokens and images. Only weights are recorded: a row's effect on the optimizer's moments, and through them on later
    steps, remains.

    Args:
        folder (`str` or `Path`):
            Folder of the record; checkpoints contain what is needed to resume it.
        sensitive (`datasets.Dataset`, `list[dict]`, `list[int]`, `np.ndarray` or `Tensor`, *optional*):
            Rows of any type that this library encodes (with the trainer's `processing_class`, unless they are
            tokenized); or indices of the sensitive rows in the trainer's dataset.
        keep (`str`):
            `sum`: one sum over all such steps, for rows that will be forgotten together. `steps`: a file per step,
            from which any of the rows can be forgotten.
        dtype (`str`):
            Dtype of the files: `float32` or `bfloat16`.
        sees (`Callable[[Mapping[str, Tensor]], Iterable[str]]`, *optional*):
            In place of `sensitive`: a function of the model's inputs that returns the names of sensitive rows.

    Raises:
        `ValueError`: for invalid settings, rows that the trainer cannot tokenize, sharded weights (DeepSpeed,
            FSDP), and resuming from a checkpoint without a record.
    """

    def __init__(
        self,
        folder: str | Path,
        sensitive=None,
        keep: str = "sum",
        dtype: str = "float32",
        sees: Callable[[Mapping[str, Tensor]], Iterable[str]] | None = None,
    ):
        check_choice("keep", keep, KEEPS)
        check_choice("dtype", dtype, DTYPES)
        if (sensitive is None) == (sees is None):
            raise ValueError("Give `sensitive` rows, or a function `sees` that finds them; not both.")
        if isinstance(sensitive, (np.ndarray, Tensor)):
            sensitive = sensitive.tolist()
        if sensitive is not None and len(sensitive) and isinstance(sensitive[0], (bool, np.bool_)):
            raise ValueError("`sensitive` is a mask. Give the rows themselves, or their places in the dataset.")
        self.folder, self.sensitive, self.keep, self.dtype, self.sees = Path(folder), sensitive, keep, dtype, sees
        self.steps: list[dict[str, Any]] = []
        self.total: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._before: dict[str, Tensor] | None = None
        self._hook = None

    def on_train_begin(self, args, state, control, model=None, processing_class=None, train_dataloader=None, **kwargs):
        self._close()
        _check_whole(model)
        if self.sensitive is not None:
            rows = self.sensitive
            if len(rows) and isinstance(rows[0], Integral):
                rows = [train_dataloader.dataset[int(place)] for place in rows]
            if processing_class is None and len(rows) and "input_ids" not in rows[0]:
                raise ValueError(
                    "The sensitive rows have no `input_ids`, and the trainer has no `processing_class` that makes "
                    "them. Pass the trainer its `processing_class`; for a language model, tokenized rows do as well."
                )
            self.sees = finder_of(model, rows, processing_class, getattr(args, "max_length", None))
        self.steps, self.total, self._seen = [], {}, set()
        if state.global_step:
            self._go_on(args, state.global_step)
        self._hook = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, model: nn.Module, args, kwargs) -> None:
        if model.training and torch.is_grad_enabled():
            self._seen.update(self.sees(kwargs if kwargs else {"input_ids": args[0]}))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        from accelerate.utils import gather_object

        self._seen = set(gather_object(sorted(self._seen)))
        if self._seen:
            self._before = {name: p.detach().clone() for name, p in _trained(model)}

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self._before is None:
            return
        step = state.global_step + 1
        deltas = {name: _difference(p, self._before[name]).cpu() for name, p in _trained(model)}
        self._before, seen, self._seen = None, sorted(self._seen), set()
        self.steps.append({"step": step, "rows": seen})
        if self.keep == "sum":
            self.total = {name: delta + self.total.get(name, 0) for name, delta in deltas.items()}
        elif state.is_world_process_zero:
            self._write(self.folder / f"step-{step}.safetensors", deltas)

    def on_save(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            self._close_record(Path(args.output_dir) / f"checkpoint-{state.global_step}", model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._close()
        known = set() if self.sensitive is None else set(self.sees.names)
        unseen = known.difference(*(entry["rows"] for entry in self.steps))
        if unseen or not self.steps:
            logger.warning(
                "No step of %d saw %s: of them nothing is recorded. Are they in the training set, and tokenized as "
                "there?",
                state.global_step,
                f"{len(unseen)} of {len(known)} sensitive rows" if known else "any sensitive row",
            )
        if state.is_world_process_zero:
            self._close_record(self.folder, model)

    def _close(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _go_on(self, args, step: int) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{step}"
        if not (folder / RECORD).is_file():
            raise ValueError(
                f"Training goes on from step {step}, and {folder} holds no record of the steps before. Start anew, or "
                "go on from a checkpoint that was made with this recorder."
            )
        self.steps = read_json(folder / RECORD, "Go on from another checkpoint.")["steps"]
        if self.keep == "sum" and self.steps:
            from safetensors.torch import load_file

            self.total = {name: delta.float() for name, delta in load_file(folder / SUM).items()}

    def _close_record(self, folder: Path, model: nn.Module) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.keep == "sum" and self.steps:
            # A checkpoint's is added to: its rounding would add up.
            self._write(folder / SUM, self.total, None if folder == self.folder else torch.float32)
        rows = None if self.sensitive is None else sorted(self.sees.names)
        record = {"keep": self.keep, "rows": rows, "steps": self.steps, "weights": samples(model)}
        write_text(folder / RECORD, json.dumps(record) + "\n")

    def _write(self, path: Path, deltas: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        from safetensors.torch import save_file

        dtype = DTYPES[self.dtype] if dtype is None else dtype
        with whole_file(path) as part:
            save_file({name: delta.to(dtype).contiguous() for name, delta in deltas.items()}, part)


def samples(model: nn.Module) -> dict[str, list[float]]:
    """Some weights of each tensor that trains."""
    return {name: p.detach().flatten()[:SAMPLE].float().tolist() for name, p in _trained(model)}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _difference(after: Tensor, before: Tensor) -> Tensor:
    """In float32; of narrow weights without their rounding."""
    return (after.to(torch.promote_types(after.dtype, torch.float32)) - before).float()


def _check_whole(model: nn.Module) -> None:
    if any(hasattr(p, "ds_id") or hasattr(p, "to_local") for p in model.parameters()):
        raise ValueError("The weights are in parts (ZeRO-3, FSDP): their steps cannot be recorded. Train with DDP.")
