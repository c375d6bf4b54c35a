# SPDX-License-Identifier: Apache-2.0
"""From rows to one padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .formats import IGNORE_INDEX
from .role_table import FORGET, RETAIN


def rows_of(found: Mapping[str, Any] | list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What a pair has of a role: a row, or all rows that belong to one (`RolePairs.together`)."""
    return found if isinstance(found, list) else [found]


class RoleBatches:
    """Batches of pairs, the rows of a role together, or of flat rows; a subclass says how flat rows become one batch.

    `marker` is a column that flat rows have and pairs do not.
    """

    marker: str
    roles: Sequence[str]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if self.marker in rows[0]:
            return self.pad(rows)
        present = [role for role in self.roles if role in rows[0]]
        found = [(role, pair, row) for role in present for pair in rows for row in rows_of(pair[role])]
        batch = self.pad([row for _, _, row in found])
        batch["role"] = torch.tensor([self.roles.index(role) for role, _, _ in found])
        batch["index"] = torch.tensor([row["index"] for _, _, row in found])
        if "topic" in rows[0].get(FORGET, {}):
            # A pair is about what its forget row is about.
            batch["topic"] = torch.tensor([pair[FORGET]["topic"] for _, pair, _ in found])
        return batch

    def pad(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Flat rows as one batch."""
        raise NotImplementedError


@dataclass
class RoleCollator(RoleBatches):
    """Pads rows into one batch; the rows of all roles of a step share it, so that one forward pass serves them all.

    Attention masks come from the rows' lengths, never from the pad token's id: a real EOS stays visible where EOS is
    used as PAD.

    Args:
        pad_token_id (`int`):
            Fills `input_ids`; its value has no effect on a loss.
        roles (`Sequence[str]`):
            Names of the roles; `role` holds positions in it.
        padding_side (`str`):
            `"right"` for training, `"left"` for generation.
        pad_to_multiple_of (`int`, *optional*):
            Rounds the width up.

    Example: two pairs of rows of lengths (3, 2) and (1, 4) become

    ```
    role           [0, 0, 1, 1]               # forget, forget, retain, retain
    attention_mask [[1,1,1,0], [1,0,0,0], [1,1,0,0], [1,1,1,1]]
    ```

    Returns:
        `dict` of tensors: `input_ids`, `attention_mask`, `labels` `[B, T]`; for pairs also `role`, `index` and,
        where forget rows have one, `topic` `[B]`.
    """

    pad_token_id: int
    roles: Sequence[str] = (FORGET, RETAIN)
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None

    marker = "input_ids"

    def pad(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pads flat rows to the longest of them."""
        width = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of:
            width += -width % self.pad_to_multiple_of
        batch = {
            "input_ids": torch.full((len(rows), width), self.pad_token_id),
            "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
            "labels": torch.full((len(rows), width), IGNORE_INDEX),
        }
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            span = slice(width - n, width) if self.padding_side == "left" else slice(0, n)
            batch["input_ids"][i, span] = torch.as_tensor(row["input_ids"])
            batch["attention_mask"][i, span] = 1
            if "labels" in row:
                batch["labels"][i, span] = torch.as_tensor(row["labels"])
        return batch


def role_spans(role_ids: list[int], names: Sequence[str]) -> dict[str, slice]:
    """Where each role's rows stand in the batch; a collator keeps the rows of a role together."""
    spans = {}
    for number in dict.fromkeys(role_ids):
        start, count = role_ids.index(number), role_ids.count(number)
        spans[names[number]] = slice(start, start + count)
    return spans
