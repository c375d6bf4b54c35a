# SPDX-License-Identifier: Apache-2.0
"""Which of some rows a model is called with."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...data.formats import encode_dataset
from ...families.choose import family_of
from ...families.classifier.family import Classifier


def fingerprint(ids: Iterable[int]) -> str:
    """Stands for a row in a record, which is not to hold what is to be forgotten."""
    return hashlib.sha256(np.asarray(list(ids), dtype=np.int32).tobytes()).hexdigest()


class TokenRows:
    """Finds rows by their tokens, one behind the other, anywhere in a batch.

    Args:
        sequences (`Iterable[Sequence[int]]`): token ids of each row.
    """

    def __init__(self, sequences):
        self.names = {fingerprint(ids): np.asarray(list(ids), dtype=np.int32).tobytes() for ids in sequences}

    def __call__(self, inputs: Mapping[str, Tensor]) -> set[str]:
        """Fingerprints of the rows that are in `input_ids [B, T]`."""
        lines = [line.tobytes() for line in inputs["input_ids"].cpu().numpy().astype(np.int32)]
        return {name for name, sought in self.names.items() if any(_holds(line, sought) for line in lines)}


def _holds(line: bytes, sought: bytes) -> bool:
    place = line.find(sought)
    while place % 4:
        # Between two ids, or nowhere.
        if place < 0:
            return False
        place = line.find(sought, place + 1)
    return True


class ClassifierRows:
    """Finds a classifier's rows by their tokens and pictures, whatever the batch pads them to.

    Args:
        rows (`datasets.Dataset` or `list[dict]`): with `image`, `question` (or `text`) or both.
        collator ([`~hf_unlearn.families.classifier.collator.ClassCollator`]): makes the model's inputs of a row.
    """

    def __init__(self, rows, collator):
        self.names: dict[str, tuple[bytes, np.ndarray]] = {}
        for row in rows:
            row = {**row, "label_ids": [], "label_weights": []}
            if "question" not in row and "text" in row:
                row["question"] = row.pop("text")
            (key,) = _keys(collator.pad([row]))
            name = key[0] + ",".join(f"{number:.4g}" for number in key[1]).encode()
            self.names[hashlib.sha256(name).hexdigest()] = key

    def __call__(self, inputs: Mapping[str, Tensor]) -> set[str]:
        """Fingerprints of the rows that are in a batch."""
        found = _keys(inputs)
        return {
            name
            for name, (ids, picture) in self.names.items()
            if any(ids == other and np.allclose(picture, seen, rtol=1e-5, atol=1e-3) for other, seen in found)
        }


def _keys(inputs: Mapping[str, Tensor]) -> list[tuple[bytes, np.ndarray]]:
    """Of each row its tokens, and the sums of its pixels and of their squares, to which padding adds nothing."""
    tokens = [b""] * len(next(iter(inputs.values())))
    if (ids := inputs.get("input_ids")) is not None:
        masks = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        lines = [line[mask] for line, mask in zip(ids.cpu(), masks.cpu(), strict=True)]
        tokens = [line.numpy().astype(np.int32).tobytes() for line in lines]
    pictures = [np.zeros(0)] * len(tokens)
    if (pixels := inputs.get("pixel_values")) is not None:
        flat = pixels.flatten(1).double()
        pictures = list(torch.stack([flat.sum(1), flat.square().sum(1)], 1).cpu().numpy())
    return list(zip(tokens, pictures, strict=True))


def finder_of(model: nn.Module, rows, processor, max_length: int | None) -> TokenRows | ClassifierRows:
    """What finds rows among the inputs of a model, as this library encodes them.

    Args:
        model (`nn.Module`): decides what a row is.
        rows (`datasets.Dataset` or `list[dict]`): the rows; encoded ones are taken as they are.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's.
        max_length (`int`, *optional*): in tokens; the end is cut.
    """
    family = family_of(model, "auto", False, None)
    if isinstance(family, Classifier):
        return ClassifierRows(rows, family.collator(processor, (), max_length))
    return TokenRows(encode_dataset(rows, processor, max_length, "sensitive")["input_ids"])
