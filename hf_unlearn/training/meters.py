# SPDX-License-Identifier: Apache-2.0
"""Means, and maxima, of logged components: kept on the device between logs, gathered over ranks once a log."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


# Above the number of any step.
NEVER = 2**31 - 1


class Meters:
    """Running means of scalars; of those named `.../highest_...`, maxima. Every rank must add the same names between
    two reductions.

    Attributes:
        step (`int`): the optimizer step that is being made; set by who runs the steps.
        first_bad (`dict[str, Tensor]`): loss name to the first step with a value that is not finite, or `NEVER`.
    """

    def __init__(self):
        self.step, self._silent = 0, False
        self.first_bad: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._maxima: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    @property
    def is_silent(self) -> bool:
        """Whether nothing is added now: a pass is made again."""
        return self._silent

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is added inside."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def add(self, name: str, value: Tensor) -> None:
        if self._silent:
            return
        value = value.detach().float()
        if "/highest_" in name:
            self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)
            return
        self._sums[name] = self._sums.get(name, 0) + value
        self._counts[name] = self._counts.get(name, 0) + 1
        self._last[name] = value
        if name.endswith("loss"):
            # On the device, like the sums: nothing waits for it before somebody asks.
            first = self.first_bad.get(name, torch.full((), NEVER, device=value.device))
            self.first_bad[name] = torch.where(value.isfinite(), first, first.clamp(max=self.step))

    def reduce(self, accelerator) -> dict[str, float]:
        """Means and maxima since the last call, over ranks; empty if nothing was added."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean").tolist()
        found = dict(zip(names, means, strict=True))
        if self._maxima:
            names = sorted(self._maxima)
            maxima = torch.stack([self._maxima[name] for name in names])
            found |= zip(names, accelerator.gather(maxima[None]).max(0).values.tolist(), strict=True)
        self._sums, self._counts, self._maxima = {}, {}, {}
        return found

    def last(self, name: str, accelerator) -> float:
        """The value added last, mean over ranks."""
        return accelerator.reduce(self._last[name].clone(), reduction="mean").item()
