# SPDX-License-Identifier: Apache-2.0
"""Means of logged components: kept on the device between logs, gathered over ranks once a log."""

import torch
from torch import Tensor


class Meters:
    """Running means of scalars. Every rank must add the same names between two reductions."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._last: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self._sums[name] = self._sums.get(name, 0) + value
        self._counts[name] = self._counts.get(name, 0) + 1
        self._last[name] = value

    def reduce(self, accelerator) -> dict[str, float]:
        """Means since the last call, over ranks; empty if nothing was added."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean").tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, means, strict=True))

    def last(self, name: str, accelerator) -> float:
        """The value added last, mean over ranks."""
        return accelerator.reduce(self._last[name].clone(), reduction="mean").item()
