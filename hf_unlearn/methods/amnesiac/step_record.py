# SPDX-License-Identifier: Apache-2.0
"""Recorded optimizer steps, taken back."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files import read_json
from .step_deltas import RECORD, SAMPLE, SUM


logger = logging.getLogger(__name__)


class StepRecord:
    """What [`AmnesiacRecorder`] wrote.

    Args:
        folder (`str` or `Path`): the recorder's.

    Raises:
        `ValueError`: if there is no record.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None or not (self.folder / RECORD).is_file():
            what = "no `record_path` was given" if folder is None else f"{folder} holds no record"
            raise ValueError(
                "variant='subtract' takes back recorded steps of the original's training, and "
                f"{what}. Train the original with `AmnesiacRecorder` among its callbacks, or take variant='relabel', "
                "which works on any checkpoint."
            )
        record = read_json(self.folder / RECORD, "Record the training again.")
        self.keep, self.rows, self.steps, self.weights = (record[k] for k in ("keep", "rows", "steps", "weights"))

    def tainted(self, rows: Iterable[str]) -> list[int]:
        """The steps to take back so that rows, given by their fingerprints, are forgotten.

        Raises:
            `ValueError`: if one of them was not recorded.
        """
        if self.rows is None:
            return [entry["step"] for entry in self.steps]
        rows = set(rows)
        if unknown := rows - set(self.rows):
            raise ValueError(
                f"{len(unknown)} of {len(rows)} forget rows were not among the {len(self.rows)} that {self.folder} "
                "recorded. Give rows that were, tokenized as then, or take variant='relabel'."
            )
        self._tell_unseen(rows)
        if self.keep == "sum":
            if others := set(self.rows) - rows:
                logger.warning("The record is one sum: %d other rows recorded with it are forgotten too.", len(others))
            rows = set(self.rows)
        return [entry["step"] for entry in self.steps if rows & set(entry["rows"])]

    def _tell_unseen(self, rows: set[str]) -> None:
        """Of a row that no step saw, cut or tokenized otherwise or not there at all, nothing can be taken back."""
        if unseen := rows.difference(*(entry["rows"] for entry in self.steps)):
            logger.warning(
                "No recorded step of %s saw %d of %d forget rows: of them nothing is taken back. Were they cut, or "
                "tokenized otherwise, in the original's training? Give rows as it had them, or take "
                "variant='relabel'.",
                self.folder,
                len(unseen),
                len(rows),
            )

    def sums(self, steps: list[int]) -> Iterable[tuple[str, Tensor]]:
        """Each parameter's name and the sum of its deltas, in float32; one parameter is in memory at a time."""
        from safetensors import safe_open

        if not steps:
            return
        names = [SUM] if self.keep == "sum" else [f"step-{step}.safetensors" for step in steps]
        holders = defaultdict(list)
        with ExitStack() as stack:
            for name in names:
                file = stack.enter_context(safe_open(self.folder / name, framework="pt"))
                for parameter in file.keys():  # noqa: SIM118
                    holders[parameter].append(file)
            for parameter, files in holders.items():
                yield parameter, sum(file.get_tensor(parameter).float() for file in files)

    @torch.no_grad()
    def subtract(self, model: nn.Module, steps: list[int]) -> None:
        """\\( w - \\sum_s \\Delta_s \\), in place.

        Raises:
            `ValueError`: if these are not the weights that the recorded training ended with.
        """
        self.check_weights(model)
        parameters = dict(model.named_parameters())
        for name, total in self.sums(steps):
            found = parameters[name]
            # Narrow weights are rounded here only: once a step would leave most of what the steps did.
            found.copy_(found - total.to(found.device))

    def check_weights(self, model: nn.Module) -> None:
        """Raises `ValueError` unless the model is the one that the recorded training ended with."""
        parameters = dict(model.named_parameters())
        missing = [name for name in self.weights if name not in parameters]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.weights)} recorded parameters are not in the model, the first: "
                f"{missing[0]!r}. Load what was trained: with its adapter, if it was one, and not merged."
            )
        for name, values in self.weights.items():
            now = parameters[name].detach().flatten()[:SAMPLE].float().cpu()
            if not torch.allclose(now, torch.tensor(values), rtol=1e-2, atol=1e-7):
                raise ValueError(
                    f"{name} is not as the recorded training left it: the record in {self.folder} is of other "
                    "weights. Give the checkpoint that it was made with."
                )
