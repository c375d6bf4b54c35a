# SPDX-License-Identifier: Apache-2.0
"""Where a model keeps its rows: representations on the two directions along which they differ most."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .attack import BaseAttack
from .fitted import FittedAttack, representation
from .subjects import Subject


MOST_ROWS = 500
# A feature that spreads by less of its largest value is float32's rounding, which scaling would blow up.
ROUNDING = 1e-6


def reads_representations(attack: BaseAttack) -> bool:
    """Whether an attack learns from what the last layer reads."""
    return isinstance(attack, FittedAttack) and attack.features is representation


def picture(subject: Subject, forget: Any, retain: Any, nonmembers: Any, seed: int = 0) -> dict[str, Any]:
    """Two principal components of representations, fitted on the rows of all sets together.

    Features are standardised, as attacks read them.

    Args:
        subject ([`Subject`]):
            After its attacks: of forget rows and non-members the representations are there.
        forget, retain (*optional*), nonmembers:
            Rows. Of each set `MOST_ROWS` at most are drawn, and of retain rows only these go through the model.
        seed (`int`):
            Of the draw.

    Returns:
        `dict`: `points`, by set `[[x, y], ...]` of the rows that have a representation, or `None` where fewer than two
        features vary; `variance_shares` of both axes, or `None`; `most_rows` and `seed`.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, rows in (("forget", forget), ("nonmember", nonmembers)):
        found[name] = subject.states(rows)[_drawn(rng, rows)]
    if retain is not None:
        found["retain"] = subject.states(_taken(retain, _drawn(rng, retain)))
    points, shares = principal_components(found)
    return {"points": points, "variance_shares": shares, "most_rows": MOST_ROWS, "seed": seed}


def principal_components(sets: dict[str, np.ndarray]) -> tuple[dict[str, list] | None, list[float] | None]:
    """Points of each set on the first two components of all, and the shares of variance, to 4 significant digits.

    Args:
        sets (`dict[str, np.ndarray]`):
            Features `[n, d]`; rows with one that is not finite are left out.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    sets = {name: values[np.isfinite(values).all(1)] for name, values in sets.items()}
    values = np.concatenate(list(sets.values()), dtype=np.float64)
    if len(values) < 2:
        return None, None
    # Squares of huge numbers overflow; such a feature cannot be scaled.
    with np.errstate(over="ignore", invalid="ignore"):
        spread = values.std(0)
    varies = np.isfinite(spread) & (spread > ROUNDING * np.abs(values).max(0))
    if varies.sum() < 2:
        return None, None
    # The exact solver: the others draw, or are slower with many features.
    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(StandardScaler().fit_transform(values[:, varies]))
    parts = np.split(points, np.cumsum([len(part) for part in sets.values()])[:-1])
    told = {name: [_rounded(point) for point in part] for name, part in zip(sets, parts, strict=True)}
    return told, _rounded(pca.explained_variance_ratio_)


def _drawn(rng: np.random.Generator, rows: Sequence) -> np.ndarray:
    return np.sort(rng.permutation(len(rows))[:MOST_ROWS])


def _taken(rows: Any, places: np.ndarray) -> Any:
    # Pictures of a dataset stay unread until they are needed.
    return rows.select(places) if hasattr(rows, "select") else [rows[i] for i in places]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
