# SPDX-License-Identifier: Apache-2.0
"""Weights as a quantised format holds them: rounded, and back in their own dtype."""

from collections.abc import Callable

import torch


# The 16 values of 4-bit NormalFloat (Dettmers et al. 2023, appendix E) and of 4-bit floating point, of blocks whose
# largest absolute value is 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0052083334, 0.6666667, 1.0, 0.3333333, 0.5, 0.1666667, 0.25)
BLOCK = 64


def codes(weight: torch.Tensor, values: tuple[float, ...], block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of a format's values to each weight over its block's largest, and these largest values.

    Args:
        weight (`torch.Tensor`): of any shape; blocks run along it flattened, the last may be shorter.

    Returns:
        `tuple`: codes `[blocks, block]` in float32 units of the format, and scales `[blocks, 1]`.
    """
    flat = weight.detach().float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = padded.abs().amax(1, keepdim=True)
    levels = torch.tensor(sorted({*values}), device=weight.device)
    middle = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(padded / scale.clamp_min(1e-38), middle), scale


def _of_values(values: tuple[float, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    def rounded(weight: torch.Tensor) -> torch.Tensor:
        code, scale = codes(weight, values)
        levels = torch.tensor(sorted({*values}), device=weight.device)
        return (levels[code] * scale).flatten()[: weight.numel()].view_as(weight).to(weight.dtype)

    return rounded


def _of_rows(largest: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def rounded(weight: torch.Tensor) -> torch.Tensor:
        held = weight.detach().float()
        scale = held.abs().amax(-1, keepdim=True).clamp_min(1e-38) / largest
        return ((held / scale).round() * scale).to(weight.dtype)

    return rounded


_FP4 = tuple(sign * value for value in FP4 for sign in (1.0, -1.0))

# name -> weight as it comes back out of the format
FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nf4": _of_values(NF4),
    "fp4": _of_values(_FP4),
    "int8": _of_rows(127),
    "int4": _of_rows(7),
    "bfloat16": lambda weight: weight.to(torch.bfloat16).to(weight.dtype),
    "float16": lambda weight: weight.to(torch.float16).to(weight.dtype),
}


def pruned(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The weight with the smallest `share` of its values, by magnitude, set to 0."""
    k = round(share * weight.numel())
    if k == 0:
        return weight.clone()
    smallest = weight.detach().abs().flatten().topk(k, largest=False, sorted=False).indices
    return weight.flatten().index_fill(0, smallest, 0).view_as(weight)
