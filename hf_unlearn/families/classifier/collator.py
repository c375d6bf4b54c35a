# SPDX-License-Identifier: Apache-2.0
"""From pictures, questions and soft labels to one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...data.collator import RoleBatches


@dataclass
class ClassCollator(RoleBatches):
    """Rows of all roles in one batch, processed here so that pictures are read when they are needed.

    Args:
        processor:
            The model's: of text, of pictures, or of both.
        roles (`Sequence[str]`):
            Names of the roles; `role` holds positions in it.
        num_labels (`int`):
            `K`.
        max_length (`int`, *optional*):
            Tokens of a text; the end is cut.

    Returns:
        `dict` of tensors: what the processor makes of the rows, `labels` float `[B, K]`; for pairs also `role`
        and `index` `[B]`.
    """

    processor: Any
    roles: Sequence[str]
    num_labels: int
    max_length: int | None = None

    marker = "label_ids"

    def pad(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Flat rows as one batch."""
        asked: dict[str, Any] = {}
        if "image" in rows[0]:
            asked["images"] = [row["image"].convert("RGB") for row in rows]
        if "question" in rows[0]:
            asked |= {"text": [row["question"] for row in rows], "padding": True}
            asked |= {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        batch = dict(self.processor(**asked, return_tensors="pt"))
        labels = torch.zeros(len(rows), self.num_labels)
        for i, row in enumerate(rows):
            labels[i, torch.as_tensor(row["label_ids"], dtype=torch.long)] = torch.as_tensor(
                row["label_weights"], dtype=torch.float
            )
        return {**batch, "labels": labels}
