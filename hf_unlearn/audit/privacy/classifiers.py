# SPDX-License-Identifier: Apache-2.0
"""Classifiers under attack."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...families.classifier.encode import encode_classes, identities
from ...families.classifier.family import Classifier as ClassFamily
from ...families.classifier.forward import classifier_inputs
from ...stored.key import hash_processor
from ..as_saved import as_saved
from ..batching import device_of, map_batches
from ..model_checks import check_sound
from .cache import digest
from .signals import SIGMOID_COLUMNS, SOFTMAX_COLUMNS, Signals, sigmoid_signals, softmax_signals
from .subjects import Subject


class Classifier(Subject):
    """A model that gives logits `[B, C]`, and rows that are dicts of tensors, such as a processor's output.

    A row's `labels` are an integer class, or targets `[C]` in [0, 1] of several classes, as ViLT's are. Rows are
    batched in their order, by stacking; under a fixed seed, since ViLT may draw patches at random.

    Args:
        model (`torch.nn.Module`):
            Returns logits, or something with `logits`. Gets the entries of a row that its `forward` names.
        head (`str`, *optional*):
            `"softmax"` (classes exclude each other) or `"sigmoid"` (yes or no to each). By default softmax for
            integer labels, sigmoid for targets `[C]`.
        kwargs:
            As in [`Subject`].
    """

    def __init__(self, model, head: str | None = None, **kwargs):
        super().__init__(model, **kwargs)
        if head not in (None, "softmax", "sigmoid"):
            raise ValueError(f"head={head!r}; allowed: 'softmax', 'sigmoid', or None (by the labels).")
        self.head = head

    def row_ids(self, data):
        # Attacks ask for them one after another, and pictures are large.
        return self.once("ids", data, lambda rows: [self._row_id(row) for row in rows])

    def _row_id(self, row) -> str:
        return digest([(name, _bytes(row[name])) for name in sorted(self._inputs(row))])

    def row_keys(self, data):
        head = self.head_of(data)
        rows = zip(self.row_ids(data), self._labels(data), strict=True)
        return [digest([row, head, _bytes(label)]) for row, label in rows]

    def settings(self):
        return {"batch_size": self.batch_size}

    def head_of(self, data):
        return self.head or ("sigmoid" if self._labels(data).ndim == 2 else "softmax")

    def _states(self, data):
        with classifier_inputs(self.model) as seen:
            return np.stack(self._run(data, lambda output, batch: list(seen.pop().double().cpu().numpy()), "States"))

    def _run(self, data, of_output: Callable[[Any, list[int]], list], desc: str) -> list:
        """What `of_output` makes, a row each, of the model's output for a batch and of the batch's places."""
        device = device_of(self.model)

        def compute(batch: list[int]) -> list:
            inputs = self._batch([data[i] for i in batch])
            return of_output(self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}), batch)

        with as_saved(self.model), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return map_batches(compute, [1] * len(data), self.batch_size, progress=self.progress, desc=desc)

    def _inputs(self, row: Mapping[str, Any]) -> list[str]:
        parameters = inspect.signature(self.model.forward).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [name for name in row if name in parameters or (takes_all and torch.is_tensor(row[name]))]
        names = [name for name in names if name != "labels"]
        if not names:
            raise ValueError(
                f"Rows have the entries {sorted(row)}, of which the model's `forward` names none. Give what a "
                "processor makes of them, or give `processing_class`."
            )
        return names

    def _labels(self, data) -> torch.Tensor:
        return _labels(data)

    def _batch(self, rows) -> dict[str, torch.Tensor]:
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in self._inputs(rows[0])}

    def _compute(self, data):
        labels, head = self._labels(data), self.head_of(data)

        def signals(output, batch: list[int]) -> list[tuple[np.ndarray, ...]]:
            logits = output if torch.is_tensor(output) else output["logits"]
            _check_classes(labels, logits.shape[-1])
            targets = labels[batch]
            if targets.ndim == 1:
                targets = torch.nn.functional.one_hot(targets, logits.shape[-1])
            return (sigmoid_signals if head == "sigmoid" else softmax_signals)(logits, targets.to(logits.device))

        rows = self._run(data, signals, "Scoring")
        # A row without a label has no likelihood, whatever the model says: `top` needs none.
        check_sound(self.model, [np.isfinite(row[2]).any() for row in rows])
        return Signals.of_rows(rows, SIGMOID_COLUMNS if head == "sigmoid" else SOFTMAX_COLUMNS)


class RowClassifier(Classifier):
    """A classifier of transformers and rows as its trainers take them: pictures, questions, soft labels (see
    [`~hf_unlearn.families.classifier.encode`]).

    Args:
        model (`PreTrainedModel`):
            Its config names the classes.
        processing_class:
            Its processor.
        max_length (`int`, *optional*):
            Where texts are cut, in tokens.
        kwargs:
            As in [`Classifier`]; `head` follows from the model's own loss.
    """

    def __init__(self, model, processing_class, max_length: int | None = None, **kwargs):
        core = getattr(model, "get_base_model", lambda: model)()
        self.family = ClassFamily(model.config, "auto", type(core).__name__)
        head = {"bernoulli": "sigmoid", "softmax": "softmax"}[self.family.likelihood]
        super().__init__(model, **{"head": head} | kwargs)
        self.collator = self.family.collator(processing_class, (), max_length)
        self.processor = hash_processor(processing_class)

    def encode(self, data):
        """Rows with soft labels; pictures are read when they are needed."""
        return self.once("encoded", data, lambda rows: encode_classes(rows, self.family.classes, "attacked"))

    def identities(self, data) -> list[tuple]:
        """Picture, question, and numbers and weights of the classes."""
        return self.once("identities", data, lambda rows: identities(self.encode(rows)))

    def row_ids(self, data):
        return [digest(identity[:2]) for identity in self.identities(data)]

    def row_keys(self, data):
        return [digest([self.head, *identity]) for identity in self.identities(data)]

    def settings(self):
        processed = {"processor": self.processor, "max_length": self.collator.max_length}
        return super().settings() | processed

    def _states(self, data):
        return super()._states(self.encode(data))

    def _compute(self, data):
        return super()._compute(self.encode(data))

    def _labels(self, data):
        labels = torch.zeros(len(data), self.collator.num_labels)
        for i, (ids, weights) in enumerate(zip(data["label_ids"], data["label_weights"], strict=True)):
            labels[i, torch.as_tensor(ids, dtype=torch.long)] = torch.as_tensor(weights)
        return labels

    def _batch(self, rows):
        batch = self.collator.pad(rows)
        del batch["labels"]
        return batch


def _labels(data: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Integer classes `[n]` or targets `[n, C]`."""
    if any("labels" not in row for row in data):
        raise ValueError("Rows of a classifier need `labels`: an integer class, or targets [C] in [0, 1].")
    labels = [torch.as_tensor(row["labels"]) for row in data]
    shapes = sorted({tuple(label.shape) for label in labels})
    if len(shapes) > 1:
        raise ValueError(f"`labels` of rows have the shapes {shapes}; give all rows of a set the same.")
    labels = torch.stack(labels)
    soft = labels.is_floating_point()
    if not soft and labels.shape[1:] in ((), (1,)):
        return labels.reshape(-1).long()
    if not soft or labels.ndim != 2 or labels.shape[1] < 2 or not 0 <= labels.min() <= labels.max() <= 1:
        raise ValueError(
            f"`labels` of a row have the shape {tuple(labels.shape[1:])} and the type {labels.dtype}; give an integer "
            "class, or float targets [C] in [0, 1]."
        )
    return labels


def _check_classes(labels: torch.Tensor, n_classes: int) -> None:
    if n_classes < 2:
        raise ValueError("The model gives one logit a row, and attacks compare classes: give one logit a class.")
    if labels.ndim == 2 and labels.shape[1] != n_classes:
        raise ValueError(f"The model has {n_classes} classes, and `labels` of a row are {labels.shape[1]} targets.")
    wrong = torch.nonzero((labels < 0) | (labels >= n_classes)) if labels.ndim == 1 else ()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"The model has {n_classes} classes, and the label {int(labels[row])} of row {row} is none of them; give "
            f"numbers from 0 to {n_classes - 1}."
        )


def _bytes(value: Any) -> str:
    array = torch.as_tensor(value).detach().cpu().contiguous()
    content = array.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{array.dtype} {tuple(array.shape)} {hashlib.sha256(content).hexdigest()}"
