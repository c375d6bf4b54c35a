# SPDX-License-Identifier: Apache-2.0
"""The attack of the SCRUB repository: logistic regression on the loss, here always out of fold."""

from typing import Any

import numpy as np

from .attacks import BaseAttack
from .subjects import as_subject


CLIP = 100.0
FOLDS = 5


class ScrubAttack(BaseAttack):
    """Logistic regression from a row's loss, clipped to [-100, 100], to membership (Kurmanji et al. 2023, appendix).

    Attacks any model, not only SCRUB's. Every row's score is its log-odds from a fit on the other four fifths, both
    classes weighted alike. The direction is learned there too, so a loss that is *too high* also counts as evidence.

    Args:
        seed (`int`):
            Of the folds.
    """

    name = "scrub"
    any_rows = False

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._fitted = None

    def fit(self, model: Any, members: Any, nonmembers: Any) -> "ScrubAttack":
        """Fits on both sets, to score other rows with `compute_scores`."""
        features, labels = _joined(self._feature(model, members), self._feature(model, nonmembers))
        self._fitted = _regression().fit(features, labels)
        return self

    def compute_scores(self, model, data):
        if self._fitted is None:
            raise ValueError("'scrub' learns from rows: call `fit(model, members, nonmembers)`, or `score_sets`.")
        feature = self._feature(model, data)
        defined = np.isfinite(feature)
        scores = np.full(len(feature), np.nan)
        scores[defined] = self._fitted.decision_function(feature[defined, None])
        return scores

    def score_sets(self, model, members, nonmembers):
        features = self._feature(model, members), self._feature(model, nonmembers)
        return out_of_fold(*features, seed=self.seed)

    def accuracy(self, model: Any, members: Any, nonmembers: Any) -> tuple[float, float]:
        """Mean and standard deviation of the accuracy as that repository reports it.

        Five stratified splits with a tenth to test on; the larger set is thinned out to the size of the other. 0.5 is
        ideal; far below is leakage too.
        """
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

        sets = [self._feature(model, rows) for rows in (members, nonmembers)]
        sets = [values[np.isfinite(values)] for values in sets]
        size = min(map(len, sets))
        rng = np.random.default_rng(self.seed)
        features, labels = _joined(*(rng.choice(values, size, replace=False) for values in sets))
        splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=self.seed)
        found = cross_val_score(_regression(), features, labels, cv=splits, scoring="accuracy")
        return float(found.mean()), float(found.std())

    def _feature(self, model: Any, data: Any) -> np.ndarray:
        return np.clip(-as_subject(model).observe(data).mean("logp"), -CLIP, CLIP)


def out_of_fold(members: np.ndarray, nonmembers: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of membership of every row from a fit on the other folds.

    Args:
        members (`np.ndarray` `[n1]`), nonmembers (`np.ndarray` `[n0]`):
            One feature a row; NaN where there is none.
        seed (`int`):
            Of the folds.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores `[n1]` and `[n0]`, NaN where the feature is.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, labels = _joined(members, nonmembers)
    scores = np.full(len(labels), np.nan)
    defined = np.isfinite(features[:, 0])
    if min(np.bincount(labels[defined], minlength=2)) >= FOLDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        scores[defined] = cross_val_predict(
            _regression(), features[defined], labels[defined], cv=folds, method="decision_function"
        )
    return scores[: len(members)], scores[len(members) :]


def _regression():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced")


def _joined(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate([members, nonmembers])
    return features[:, None], np.repeat([1, 0], [len(members), len(nonmembers)])
