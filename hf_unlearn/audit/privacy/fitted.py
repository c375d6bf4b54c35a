# SPDX-License-Identifier: Apache-2.0
"""Attacks that learn, always out of fold: each says what it reads of a row and what is fitted to it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .attack import BaseAttack
from .checks import MIN_ROWS
from .choose_subject import as_subject
from .subjects import Subject


CLIP = 100.0
FOLDS = 5


class FittedAttack(BaseAttack):
    """A classifier from features of a row to membership. Every row's score is from a fit on the other four fifths:
    fitted and scored on the same rows, features of noise find members. Copies of a row share a fold.

    Args:
        name (`str`):
            Of the attack.
        features (`Callable`):
            Of a [`Subject`] and rows: `[n, k]`, NaN where a row has none.
        estimator (`Callable`):
            Makes an unfitted classifier of scikit-learn with `decision_function` or `predict_proba`.
        seed (`int`):
            Of the folds.
    """

    any_rows = False
    # Folds share what they are fitted on. Of features without meaning the AUC spreads 1.3 to 1.5 times as much as that
    # of independent scores (60 to 200 members, 64 to 1000 non-members, 1 and 8 features).
    design_effect = 2.0

    def __init__(
        self,
        name: str,
        features: Callable[[Subject, Any], np.ndarray],
        estimator: Callable[[], Any],
        seed: int = 0,
    ):
        self.name, self.features, self.estimator, self.seed = name, features, estimator, seed
        self._fitted = None

    def fit(self, model: Any, members: Any, nonmembers: Any) -> "FittedAttack":
        """Fits on both sets, to score other rows with `compute_scores`."""
        features, labels = _joined(*self._features(model, members, nonmembers))
        defined = np.isfinite(features).all(1)
        self._fitted = self.estimator().fit(features[defined], labels[defined])
        return self

    def compute_scores(self, model, data):
        if self._fitted is None:
            raise ValueError(
                f"{self.name!r} learns from rows: call `fit(model, members, nonmembers)`, or `score_sets`."
            )
        (features,) = self._features(model, data)
        defined = np.isfinite(features).all(1)
        scores = np.full(len(features), np.nan)
        scores[defined] = _log_odds(self._fitted, features[defined])
        return scores

    def score_sets(self, model, members, nonmembers):
        subject = as_subject(model)
        ids = [*subject.row_ids(members), *subject.row_ids(nonmembers)]
        return out_of_fold(*self._features(subject, members, nonmembers), self.seed, self.estimator, ids)

    def _features(self, model: Any, *sets: Any) -> list[np.ndarray]:
        subject = as_subject(model)
        return [self.features(subject, data) for data in sets]


class ScrubAttack(FittedAttack):
    """Logistic regression on a row's loss, clipped to [-100, 100] (Kurmanji et al. 2023, appendix).

    Attacks any model, not only SCRUB's. The direction is learned, so a loss that is *too high* also counts as
    evidence.
    """

    def __init__(self, seed: int = 0):
        super().__init__("scrub", clipped_loss, regression, seed)

    def accuracy(self, model: Any, members: Any, nonmembers: Any) -> tuple[float, float, int]:
        """Mean and standard deviation of the accuracy as that repository reports it, and the rows of each set.

        Five stratified splits with a tenth to test on, of different rows; the larger set is thinned out to the size of
        the other. 0.5 is ideal; far below is leakage too. NaN for fewer than `MIN_ROWS`.
        """
        from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

        subject = as_subject(model)
        sets = [self.features(subject, data)[first_places(subject.row_ids(data))] for data in (members, nonmembers)]
        sets = [values[np.isfinite(values).all(1)] for values in sets]
        size = min(map(len, sets))
        if size < MIN_ROWS:
            return np.nan, np.nan, size
        rng = np.random.default_rng(self.seed)
        features, labels = _joined(*(rng.choice(values, size, replace=False) for values in sets))
        splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=self.seed)
        found = cross_val_score(self.estimator(), features, labels, cv=splits, scoring="accuracy")
        return float(found.mean()), float(found.std()), size


def fitted_attacks(seed: int = 0) -> list[FittedAttack]:
    """All but `scrub`, which every audit makes: these are made where they are asked for.

    Those on representations find what predictions hide, as those of a model that was trained to be uniform.
    """
    return [
        FittedAttack("probe", representation, scaled_regression, seed),
        FittedAttack("knn", representation, neighbours, seed),
        FittedAttack("centroid", representation, centroids, seed),
        FittedAttack("features", outputs, scaled_regression, seed),
        FittedAttack("neural", outputs, network, seed),
    ]


# What is read of a row


def clipped_loss(subject: Subject, data: Any) -> np.ndarray:
    """`[n, 1]`."""
    return np.clip(-subject.observe(data).mean("logp"), -CLIP, CLIP)[:, None]


def outputs(subject: Subject, data: Any) -> np.ndarray:
    """Loss, confidence, margin and entropy, `[n, 4]`: what published code calls shadow features."""
    signals = subject.observe(data)
    return np.stack([-signals.mean("logp"), *map(signals.mean, ("top", "margin", "entropy"))], axis=1)


def representation(subject: Subject, data: Any) -> np.ndarray:
    """What the last layer reads, `[n, d]`."""
    return subject.states(data)


# What is fitted to it


def regression():
    """Logistic regression, both classes weighted alike."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=1000)


def scaled_regression():
    """The same on standardised features."""
    return _scaled(regression())


def neighbours():
    """[`NeighbourDistances`] of standardised features."""
    from .distances import NeighbourDistances

    return _scaled(NeighbourDistances())


def centroids():
    """[`ClassMeans`] of standardised features."""
    from .distances import ClassMeans

    return _scaled(ClassMeans())


def network():
    """A network of one hidden layer of 16 tanh units on standardised features."""
    from sklearn.neural_network import MLPClassifier

    # As strong a penalty as logistic regression's default; with the usual 1e-4 it learns a hundred rows by heart.
    options = {"activation": "tanh", "solver": "lbfgs", "alpha": 1.0, "max_iter": 1000, "random_state": 0}
    return _scaled(MLPClassifier((16,), **options))


def _scaled(estimator: Any):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def out_of_fold(
    members: np.ndarray,
    nonmembers: np.ndarray,
    seed: int = 0,
    estimator: Callable[[], Any] = regression,
    ids: Sequence | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score of every row from a fit on the other folds.

    Args:
        members (`np.ndarray` `[n1, k]`), nonmembers (`np.ndarray` `[n0, k]`):
            Features of each row; NaN where there is none.
        seed (`int`):
            Of the folds.
        estimator (`Callable`):
            As in [`FittedAttack`].
        ids (`Sequence` `[n1 + n0]`, *optional*):
            Which row it is, members first; by default all differ.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores `[n1]` and `[n0]`, larger for members, NaN where a feature is; all NaN
        where a set has fewer different rows than there are folds.
    """
    features, labels = _joined(members, nonmembers)
    scores = np.full(len(labels), np.nan)
    defined = np.flatnonzero(np.isfinite(features).all(1))
    features, known = features[defined], labels[defined]
    for rest, fold in folds(known, defined if ids is None else np.asarray(ids)[defined], seed):
        scores[defined[fold]] = _log_odds(estimator().fit(features[rest], known[rest]), features[fold])
    return scores[: len(members)], scores[len(members) :]


def folds(labels: np.ndarray, ids: Sequence, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of the other folds' rows and of a fold's, [`FOLDS`] times; none where a label has fewer different rows.

    Different rows are split by label; copies follow their first, so that no row is scored by a fit that saw it.

    Args:
        labels (`np.ndarray` `[n]`):
            0 or 1.
        ids (`Sequence` `[n]`):
            Equal for copies.
        seed (`int`):
            Of the split.
    """
    from sklearn.model_selection import StratifiedKFold

    firsts = first_places(ids)
    if min(np.bincount(labels[firsts], minlength=2)) < FOLDS:
        return
    ids = np.asarray(ids)
    for _, chosen in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(firsts, labels[firsts]):
        inside = np.isin(ids, ids[firsts[chosen]])
        yield np.flatnonzero(~inside), np.flatnonzero(inside)


def first_places(ids: Sequence) -> np.ndarray:
    """Where each of the different `ids` stands first, in order."""
    return np.sort(np.unique(np.asarray(ids), return_index=True)[1])


def _log_odds(fitted: Any, features: np.ndarray) -> np.ndarray:
    """What a fitted classifier decides by, or the log-odds of its probability, `[n]`."""
    if hasattr(fitted, "decision_function"):
        return fitted.decision_function(features)
    eps = np.finfo(np.float64).eps
    others, members = fitted.predict_proba(features).clip(eps, 1 - eps).T
    return np.log(members) - np.log(others)


def _joined(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = np.concatenate([members, nonmembers])
    return features, np.repeat([1, 0], [len(members), len(nonmembers)])
