# SPDX-License-Identifier: Apache-2.0
"""Attacks that learn, always out of fold: from representations, and the SCRUB repository's from the loss."""

from typing import Any

import numpy as np

from .attacks import BaseAttack
from .subjects import as_subject


CLIP = 100.0
FOLDS = 5


class FittedAttack(BaseAttack):
    """A logistic regression from features of a row to membership. Every row's score is its log-odds from a fit on the
    other four fifths, both classes weighted alike: fitted and scored on the same rows, features of noise find members.

    Args:
        seed (`int`):
            Of the folds.
    """

    any_rows = False

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._fitted = None

    def features(self, model: Any, data: Any) -> np.ndarray:
        """`[n, k]`; NaN where a row has none."""
        raise NotImplementedError

    def fit(self, model: Any, members: Any, nonmembers: Any) -> "FittedAttack":
        """Fits on both sets, to score other rows with `compute_scores`."""
        features, labels = _joined(self.features(model, members), self.features(model, nonmembers))
        self._fitted = self.regression().fit(features, labels)
        return self

    def compute_scores(self, model, data):
        if self._fitted is None:
            raise ValueError(
                f"{self.name!r} learns from rows: call `fit(model, members, nonmembers)`, or `score_sets`."
            )
        features = self.features(model, data)
        defined = np.isfinite(features).all(1)
        scores = np.full(len(features), np.nan)
        scores[defined] = self._fitted.decision_function(features[defined])
        return scores

    def score_sets(self, model, members, nonmembers):
        features = self.features(model, members), self.features(model, nonmembers)
        return out_of_fold(*features, seed=self.seed, regression=self.regression())

    def regression(self):
        """What is fitted."""
        return _regression()


class ProbeAttack(FittedAttack):
    """From a row's representation: what the last layer reads. Finds what predictions hide, as those of a model that
    was trained to be uniform; a second forward pass, so it is made only where it is asked for."""

    name = "probe"

    def regression(self):
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), _regression())

    def features(self, model, data):
        return as_subject(model).states(data)


class ScrubAttack(FittedAttack):
    """From a row's loss, clipped to [-100, 100] (Kurmanji et al. 2023, appendix).

    Attacks any model, not only SCRUB's. The direction is learned, so a loss that is *too high* also counts as
    evidence.
    """

    name = "scrub"

    def features(self, model, data):
        return np.clip(-as_subject(model).observe(data).mean("logp"), -CLIP, CLIP)[:, None]

    def accuracy(self, model: Any, members: Any, nonmembers: Any) -> tuple[float, float]:
        """Mean and standard deviation of the accuracy as that repository reports it.

        Five stratified splits with a tenth to test on; the larger set is thinned out to the size of the other. 0.5 is
        ideal; far below is leakage too.
        """
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

        sets = [self.features(model, rows) for rows in (members, nonmembers)]
        sets = [values[np.isfinite(values).all(1)] for values in sets]
        size = min(map(len, sets))
        rng = np.random.default_rng(self.seed)
        features, labels = _joined(*(rng.choice(values, size, replace=False) for values in sets))
        splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=self.seed)
        found = cross_val_score(_regression(), features, labels, cv=splits, scoring="accuracy")
        return float(found.mean()), float(found.std())


def out_of_fold(
    members: np.ndarray, nonmembers: np.ndarray, seed: int = 0, regression: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of membership of every row from a fit on the other folds.

    Args:
        members (`np.ndarray` `[n1, k]`), nonmembers (`np.ndarray` `[n0, k]`):
            Features of each row; NaN where there is none.
        seed (`int`):
            Of the folds.
        regression (`sklearn.base.ClassifierMixin`, *optional*):
            What is fitted; logistic regression by default.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores `[n1]` and `[n0]`, NaN where the feature is.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, labels = _joined(members, nonmembers)
    scores = np.full(len(labels), np.nan)
    defined = np.isfinite(features).all(1)
    if min(np.bincount(labels[defined], minlength=2)) >= FOLDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        scores[defined] = cross_val_predict(
            regression or _regression(), features[defined], labels[defined], cv=folds, method="decision_function"
        )
    return scores[: len(members)], scores[len(members) :]


def _regression():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=1000)


def _joined(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate([members, nonmembers])
    return features, np.repeat([1, 0], [len(members), len(nonmembers)])
