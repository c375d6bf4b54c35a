# SPDX-License-Identifier: Apache-2.0
"""How alike the states of two models are on the same rows. A description: no verdict follows from it."""

import numpy as np

from ..cka import debiased_cka, linear_cka


def similarity(mine: np.ndarray, theirs: np.ndarray) -> dict[str, list[float | None]]:
    """Of each layer linear and debiased CKA, and how far the mean state moved.

    Args:
        mine, theirs (`np.ndarray` `[n, layers, d]`):
            A row's state: the mean over the tokens of its answer. Not the first token's, which is the same in all.

    Returns:
        `dict`: by name `[layers]`: `cka`, `debiased_cka`, and `pca_shift`, the distance of the means along their first
        two principal components in `theirs`, in standard deviations along these.
    """
    pairs = [(mine[:, layer], theirs[:, layer]) for layer in range(mine.shape[1])]
    return {
        "cka": [linear_cka(a, b) for a, b in pairs],
        "debiased_cka": [debiased_cka(a, b) for a, b in pairs],
        "pca_shift": [pca_shift(a, b) for a, b in pairs],
    }


def pca_shift(mine: np.ndarray, theirs: np.ndarray) -> float | None:
    """See [`similarity`]; `None` for fewer than three rows, or rows that are all alike."""
    if len(theirs) < 3:
        return None
    _, spread, components = np.linalg.svd(theirs - theirs.mean(0), full_matrices=False)
    if spread[1] <= 1e-6 * np.abs(theirs).max():
        return None
    along = components[:2] @ (mine.mean(0) - theirs.mean(0))
    return float(np.linalg.norm(along / (spread[:2] / np.sqrt(len(theirs) - 1))))
