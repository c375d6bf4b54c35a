# SPDX-License-Identifier: Apache-2.0
"""Classifiers that only measure: how far a row lies from members and from non-members."""

import numpy as np
from sklearn.base import BaseEstimator


NEIGHBOURS = 5


class ClassMeans(BaseEstimator):
    """Distance to the mean non-member less that to the mean member."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> "ClassMeans":
        """`features` `[n, k]`, `labels` `[n]` 1 for members and 0 for others."""
        self.means_ = [features[labels == label].mean(0) for label in (0, 1)]
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """`[m]`, larger for members."""
        others, members = (np.linalg.norm(features - mean, axis=1) for mean in self.means_)
        return others - members


class NeighbourDistances(BaseEstimator):
    r"""Log-ratio of the densities of members and of non-members, estimated from the \\(k\\)-th nearest of each
    (Loftsgaarden and Quesenberry 1965): \\(\log r_0 - \log r_1\\), up to a factor and a constant.

    A vote of five neighbours knows six scores, and no rate can be had of a score that every tenth row shares.
    """

    def fit(self, features: np.ndarray, labels: np.ndarray) -> "NeighbourDistances":
        """`features` `[n, k]`, `labels` `[n]` 1 for members and 0 for others."""
        from sklearn.neighbors import NearestNeighbors

        classes = [features[labels == label] for label in (0, 1)]
        neighbours = min(NEIGHBOURS, *map(len, classes))
        self.classes_ = [NearestNeighbors(n_neighbors=neighbours).fit(rows) for rows in classes]
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """`[m]`, larger for members."""
        # Rows that are the same have no distance.
        others, members = (
            np.log(np.maximum(rows.kneighbors(features)[0][:, -1], np.finfo(np.float64).tiny))
            for rows in self.classes_
        )
        return others - members
