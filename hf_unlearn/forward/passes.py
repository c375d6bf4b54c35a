# SPDX-License-Identifier: Apache-2.0
"""How the rows of a step go through the model: in one padded pass, a pass a role, or one pass without padding."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fused.predicted import Predicted


# Under this share of the one padded pass's tokens, a pass a role is cheaper although weights are read (and, under
# ZeRO-3, gathered) once more.
SPLIT_BELOW = 0.7

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass
class Pass:
    """One call of the model.

    Args:
        inputs (`dict[str, Tensor]`):
            Keyword arguments of the model.
        picks (`dict[str, Tensor]`):
            Role to `[N]`: where the tokens stand that predict a label, in the flattened positions `[B * T]`.
        rows (`dict[str, Tensor]`):
            Role to `[B]`, the indices of its rows, in the order in which they are in the inputs.
    """

    inputs: dict[str, Tensor]
    picks: dict[str, Tensor]
    rows: dict[str, Tensor]


def one_pass(parts: Parts, predicted: Mapping[str, Predicted]) -> list[Pass]:
    """All rows in one padded batch."""
    inputs = {key: torch.cat([part[key] for part in parts.values()]) for key in ("input_ids", "attention_mask")}
    width, start, picks = inputs["input_ids"].shape[1], 0, {}
    for role, part in parts.items():
        picks[role] = (start + predicted[role].row) * width + predicted[role].column
        start += len(part["input_ids"])
    return [Pass(inputs, picks, _indices(parts))]


def split_passes(parts: Parts, predicted: Mapping[str, Predicted]) -> list[Pass]:
    """A pass a role, each as wide as its longest row."""
    passes = []
    for role, part in parts.items():
        width = int(part["attention_mask"].sum(1).max())
        inputs = {key: part[key][:, :width] for key in ("input_ids", "attention_mask")}
        picks = {role: predicted[role].row * width + predicted[role].column}
        passes.append(Pass(inputs, picks, _indices({role: part})))
    return passes


def packed_pass(parts: Parts, predicted: Mapping[str, Predicted]) -> list[Pass]:
    """All rows one after the other as one row without padding; positions that start again at 0 keep them apart."""
    ids, positions, picks, start = [], [], {}, 0
    for role, part in parts.items():
        mask = part["attention_mask"].bool()
        lengths = mask.sum(1)
        begins = start + lengths.cumsum(0) - lengths
        ids.append(part["input_ids"][mask])
        positions.append((mask.cumsum(1) - 1)[mask])
        picks[role] = begins[predicted[role].row] + predicted[role].column
        start += int(lengths.sum())
    inputs = {"input_ids": torch.cat(ids)[None], "position_ids": torch.cat(positions)[None]}
    return [Pass(inputs, picks, _indices(parts))]


def _indices(parts: Parts) -> dict[str, Tensor]:
    return {role: part["index"] for role, part in parts.items()}


SHAPES = {"one": one_pass, "split": split_passes, "packed": packed_pass}


def cheaper_shape(lengths: list[dict[Hashable, int]], batch_size: int) -> tuple[str, float]:
    """Chooses between one padded pass and a pass a role by counting tokens, padding included.

    Args:
        lengths (`list[dict]`): role, or role and number, to length of the paired rows, in training order.
        batch_size (`int`): pairs a batch.

    Returns:
        `tuple[str, float]`: `"one"` or `"split"`, and the tokens of split passes as a share of the one pass's.
    """
    one = split = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        widths = {role: max(pair[role] for pair in batch) for role in batch[0]}
        one += len(batch) * len(widths) * max(widths.values())
        split += len(batch) * sum(widths.values())
    share = split / one
    return ("split" if share < SPLIT_BELOW else "one"), share
