# SPDX-License-Identifier: Apache-2.0
"""Centred kernel alignment: how alike two representations of the same rows are, up to rotation and scale."""

import numpy as np

from .inputs import matrix


# A spread this small beside its mean is rounding
SMALLEST_SPREAD = 1e-5


def linear_cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """
    Linear centred kernel alignment of the same rows in two representations (Kornblith et al., 2019, equation 5):
    `|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)` with centred columns. 1 up to rotation and scale, and of `x` with itself.

    Args:
        x (`np.ndarray` of shape `[n, d]`), y (`np.ndarray` of shape `[n, e]`):
            Representations, in any float type; computed in float64.

    Returns:
        `float`, or `None` if one of them is the same for all rows, so that there is nothing to compare.

    Raises:
        `ValueError`: if they are not of the same rows, at least two, or not `[n, d]`.
    """
    x, y = matrix("x", x), matrix("y", y)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"CKA compares the same rows, at least two; got {len(x)} and {len(y)}.")
    centred = [_centred(part) for part in (x, y)]
    if any(part is None for part in centred):
        return None
    x, y = centred
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """
    Linear CKA of the unbiased estimates of HSIC (Song et al., 2012, equation 5; Nguyen et al., 2021). [`linear_cka`]
    of few rows with many features is near 1 whatever they are; this one is near 0 for unlike ones, and may be below.

    Args:
        x (`np.ndarray` of shape `[n, d]`), y (`np.ndarray` of shape `[n, e]`):
            Representations of the same rows.

    Returns:
        `float`, or `None` for fewer than four rows and where one of them is the same for all rows.
    """
    x, y = matrix("x", x), matrix("y", y)
    if len(x) != len(y):
        raise ValueError(f"CKA compares the same rows; got {len(x)} and {len(y)}.")
    if len(x) < 4:
        return None
    centred = [_centred(part) for part in (x, y)]
    if any(part is None for part in centred):
        return None
    one, other = (part @ part.T for part in centred)
    norms = _unbiased(one, one), _unbiased(other, other)
    return float(_unbiased(one, other) / np.sqrt(norms[0] * norms[1])) if min(norms) > 0 else None


def _unbiased(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate of HSIC from two kernels `[n, n]`."""
    n = len(one)
    one, other = (kernel - np.diag(np.diag(kernel)) for kernel in (one, other))
    product = (one * other).sum() + one.sum() * other.sum() / ((n - 1) * (n - 2))
    return (product - 2 * (one.sum(0) @ other.sum(0)) / (n - 2)) / (n * (n - 3))


def _centred(part: np.ndarray) -> np.ndarray | None:
    """`part` `[n, d]` without its mean and with norm 1; `None` if only rounding is left or it is not finite."""
    centred = part - part.mean(axis=0)
    norm = np.linalg.norm(centred)
    if not np.isfinite(norm) or norm <= SMALLEST_SPREAD * np.linalg.norm(part):
        return None
    return centred / norm
