# SPDX-License-Identifier: Apache-2.0
"""Weights as a quantised format holds them: codes, and the values that these come back as."""

from abc import ABC, abstractmethod

import torch


# The 16 values of 4-bit NormalFloat (Dettmers et al. 2023, appendix E) and the 8 magnitudes of 4-bit floating point,
# of blocks whose largest absolute value is 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
BLOCK = 64


class Format(ABC):
    """A format of weights `[out, in]`."""

    @abstractmethod
    def coded(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the format holds: a code for each weight `[out, in]`, and scales."""

    @abstractmethod
    def values(self, codes: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        """What codes `[out, in]` and scales come back as."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as it comes back out of the format, in its own dtype."""
        return self.values(*self.coded(weight)).to(weight.dtype)

    def same_code(self, weight: torch.Tensor, other: torch.Tensor) -> float:
        """The share of the weights that have the same code in two models: where it is near 1, what one was trained
        to after the other is lost in this format."""
        return (self.coded(weight)[0] == self.coded(other)[0]).float().mean().item()


class Blocks(Format):
    """The nearest of some levels times the largest absolute value of each block, along the flattened weight; the last
    block may be shorter. As bitsandbytes quantises to 4 bits, without double quantisation of the scales."""

    def __init__(self, levels: tuple[float, ...], block: int = BLOCK):
        self.levels, self.block = tuple(sorted({*levels})), block

    def coded(self, weight):
        flat = weight.detach().float().flatten()
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)
        scales = padded.abs().amax(1, keepdim=True)
        levels = torch.tensor(self.levels, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(padded / scales.clamp_min(1e-38), middles, out_int32=True)
        return codes.flatten()[: weight.numel()].view_as(weight), scales

    def values(self, codes, scales):
        levels = torch.tensor(self.levels, device=codes.device)
        return levels[codes.long()] * self._each(scales, codes)

    def bins(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and the highest value `[out, in]` with which each weight keeps its code, and each block its
        scale: the largest of a block stays as it is."""
        codes, scales = self.coded(weight)
        levels, each = torch.tensor(self.levels, device=codes.device), self._each(scales, codes)
        middles = (levels[1:] + levels[:-1]) / 2
        # A hair within the ends, so that rounding of the quotient decides nothing.
        low, high = torch.cat([levels[:1], middles]) + 1e-5, torch.cat([middles, levels[-1:]]) - 1e-5
        held = weight.detach().float()
        largest = held.abs() == each
        ends = (low[codes.long()] * each, high[codes.long()] * each)
        # Weights at an end already stay there.
        found = (torch.minimum(ends[0], held), torch.maximum(ends[1], held))
        return tuple(torch.where(largest, held, end).to(weight.dtype) for end in found)

    def _each(self, scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return scales.repeat_interleave(self.block)[: like.numel()].view_as(like)


class Rows(Format):
    """Whole numbers up to `largest` times the largest absolute value of each row over it. As bitsandbytes quantises
    to 8 bits, without outliers of activations."""

    def __init__(self, largest: int):
        self.largest = largest

    def coded(self, weight):
        held = weight.detach().float()
        scales = held.abs().amax(-1, keepdim=True).clamp_min(1e-38) / self.largest
        return (held / scales).round(), scales

    def values(self, codes, scales):
        return codes * scales


class Floats(Format):
    """Another floating-point dtype."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def coded(self, weight):
        return weight.detach().to(self.dtype), None

    def values(self, codes, scales):
        return codes


FORMATS: dict[str, Format] = {
    "nf4": Blocks(NF4),
    "fp4": Blocks((*FP4, *(-value for value in FP4))),
    "int8": Rows(127),
    "int4": Rows(7),
    "bfloat16": Floats(torch.bfloat16),
    "float16": Floats(torch.float16),
}


def pruned(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The weight with the smallest `share` of its values, by magnitude, set to 0."""
    k = round(share * weight.numel())
    if k == 0:
        return weight.clone()
    smallest = weight.detach().abs().flatten().topk(k, largest=False, sorted=False).indices
    return weight.flatten().index_fill(0, smallest, 0).view_as(weight)
