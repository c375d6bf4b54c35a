# SPDX-License-Identifier: Apache-2.0
"""How far two models are apart on the same rows: of each row, of the rows' mean, and of their spread.

Rows are paired: row `i` of both arrays is the same example. Coordinates are compared one by one, which says something
of models that started from the same weights; [`~hf_unlearn.audit.vqa.cka.linear_cka`] does not care for rotations.
"""

import numpy as np

from .inputs import matrix


def row_mse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    Mean squared difference of each row, `1/d sum_j (x_ij - y_ij)^2`.

    Of logits it sees a shift that all classes have in common: a softmax does not, but sigmoids, which ViLT has, do.

    Args:
        x (`np.ndarray` of shape `[n, d]`), y (`np.ndarray` of shape `[n, d]`):
            Logits or representations of the same rows.

    Returns:
        `np.ndarray` of shape `[n]`: in squared units of `x`.

    Raises:
        `ValueError`: if the shapes differ.
    """
    x, y = _paired(x, y)
    return ((x - y) ** 2).mean(axis=1)


def mean_shift(x: np.ndarray, y: np.ndarray) -> float:
    """
    How far the rows have moved together, `|mean_i x_i - mean_i y_i|_2`.

    0 also where rows moved apart from each other but their mean stayed. Its square is at most `d` times the mean of
    [`row_mse`].

    Args:
        x (`np.ndarray` of shape `[n, d]`), y (`np.ndarray` of shape `[n, d]`):
            Representations of the same rows.

    Returns:
        `float`: in units of `x`.

    Raises:
        `ValueError`: if the shapes differ.
    """
    x, y = _paired(x, y)
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))


def covariance_distance(x: np.ndarray, y: np.ndarray) -> float | None:
    """
    How much the spread of the rows has changed, `|Cov(x) - Cov(y)|_F` with `Cov(x) = X^T X / (n - 1)` of centred
    columns. A shift of all rows leaves it as it is.

    Args:
        x (`np.ndarray` of shape `[n, d]`), y (`np.ndarray` of shape `[n, d]`):
            Representations of the same rows.

    Returns:
        `float`, in squared units of `x`, or `None` for one row, which has no covariance.

    Raises:
        `ValueError`: if the shapes differ.
    """
    x, y = _paired(x, y)
    if len(x) < 2:
        return None
    covariances = [centred.T @ centred / (len(x) - 1) for centred in (x - x.mean(axis=0), y - y.mean(axis=0))]
    return float(np.linalg.norm(covariances[0] - covariances[1]))


def _paired(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shapes = [tuple(np.shape(part)) for part in (x, y)]
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][0] == 0:
        raise ValueError(f"Distances need the same rows in both models, `[n, d]`; got {shapes[0]} and {shapes[1]}.")
    return matrix("x", x), matrix("y", y)
