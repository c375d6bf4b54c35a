# SPDX-License-Identifier: Apache-2.0
"""The highest of all scores: exact, by histograms of their bits, without a sort over all weights."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor


CHUNK = 2**22
LOW_BITS = 16


def highest(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which entries are the `share` of highest score, of all tensors together.

    An entry of score 0 is never chosen: nothing says that it should train. Among equals that do not all fit, the first
    are taken.

    Args:
        scores (`Mapping[str, Tensor]`): float32, at least 0, of any shapes.
        share (`float`): above 0, at most 1.

    Returns:
        `dict[str, Tensor]`: bool, in the scores' shapes.

    Raises:
        `ValueError`: if a score is not finite, or all are 0.
    """
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"The weight mask: scores of {name} are not finite. Look at the rows and the weights.")
    total = sum(score.numel() for score in scores.values())
    positive = sum(int(torch.count_nonzero(score)) for score in scores.values())
    if not positive:
        raise ValueError("The weight mask: the score of every weight is 0, so none can be chosen.")
    count = min(max(1, round(share * total)), positive)
    bound, ties = kth_largest(scores.values(), count)
    chosen = {}
    for name, score in scores.items():
        chosen[name] = score > bound
        equal = (score == bound).flatten().nonzero()[:ties]
        chosen[name].view(-1)[equal] = True
        ties -= len(equal)
    return chosen


def kth_largest(tensors: Iterable[Tensor], k: int) -> tuple[float, int]:
    """The k-th largest of all entries, and how many that equal it are among the k largest.

    Bits of float32 values from 0 on are ordered as the values are, so that two histograms of 16 bits each find it.

    Args:
        tensors (`Iterable[Tensor]`): float32, at least 0; gone through twice.
        k (`int`): from 1 to the number of entries.
    """
    tensors = list(tensors)
    high, k = _bin_of(k, (bits >> LOW_BITS for bits in _bits(tensors)))
    low, k = _bin_of(k, (bits[bits >> LOW_BITS == high] & (2**LOW_BITS - 1) for bits in _bits(tensors)))
    found = torch.tensor((high << LOW_BITS) + low, dtype=torch.int32).view(torch.float32)
    return found.item(), k


def _bits(tensors: list[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        # Adding 0 makes a zero of -0, whose bits are not those of 0.
        yield from ((part + 0.0).view(torch.int32) for part in tensor.reshape(-1).split(CHUNK))


def _bin_of(k: int, parts: Iterable[Tensor]) -> tuple[int, int]:
    """The bin that holds the k-th largest, and its place in it, from 1."""
    counts = sum(torch.bincount(part, minlength=2**LOW_BITS).cpu() for part in parts)
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, torch.tensor(k)))
    return len(counts) - 1 - place, k - (int(from_top[place - 1]) if place else 0)
