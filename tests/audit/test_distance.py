# SPDX-License-Identifier: Apache-2.0
"""Distances between models against slow loops, and where they must be zero or known."""

import math

import numpy as np
import pytest

from hf_unlearn.audit.distance import covariance_distance, mean_shift, row_mse


def slow_distances(x, y):
    """Each row's error, the shift of the mean and the distance of the covariances, number by number."""
    n, d = len(x), len(x[0])
    errors = [sum((float(x[i][j]) - float(y[i][j])) ** 2 for j in range(d)) / d for i in range(n)]
    means = [[sum(float(row[j]) for row in part) / n for j in range(d)] for part in (x, y)]
    shift = math.sqrt(sum((means[0][j] - means[1][j]) ** 2 for j in range(d)))
    total = 0.0
    for j in range(d):
        for k in range(d):
            cov = [
                sum((float(row[j]) - mean[j]) * (float(row[k]) - mean[k]) for row in part) / (n - 1)
                for part, mean in zip((x, y), means, strict=True)
            ]
            total += (cov[0] - cov[1]) ** 2
    return errors, shift, math.sqrt(total)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, 4)), rng.normal(1.0, 2.0, size=(9, 4))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_distances_are_the_formulas(pair, dtype):
    x, y = (part.astype(dtype) for part in pair)
    errors, shift, spread = slow_distances(x, y)
    assert row_mse(x, y) == pytest.approx(errors, rel=1e-12)
    assert mean_shift(x, y) == pytest.approx(shift, rel=1e-12)
    assert covariance_distance(x, y) == pytest.approx(spread, rel=1e-12)


def test_the_same_model_is_at_no_distance(pair):
    x, _ = pair
    assert (row_mse(x, x).tolist(), mean_shift(x, x), covariance_distance(x, x)) == ([0.0] * 9, 0.0, 0.0)


def test_a_shift_of_all_rows_is_the_means_alone(pair):
    x, _ = pair
    step = np.array([3.0, 0.0, -4.0, 0.0])
    assert mean_shift(x, x + step) == pytest.approx(5)
    assert covariance_distance(x, x + step) == pytest.approx(0, abs=1e-12)
    assert row_mse(x, x + step) == pytest.approx([25 / 4] * 9)


def test_rows_that_change_places_move_neither_mean_nor_covariance(pair):
    x, _ = pair
    moved = np.roll(x, 1, axis=0)
    assert mean_shift(x, moved) == pytest.approx(0, abs=1e-12)
    assert covariance_distance(x, moved) == pytest.approx(0, abs=1e-12)
    assert (row_mse(x, moved) > 0.1).any(), "rows are paired by their place"


def test_a_wider_spread_is_the_covariances_alone(pair):
    x, _ = pair
    wide = x.mean(axis=0) + 2 * (x - x.mean(axis=0))
    assert mean_shift(x, wide) == pytest.approx(0, abs=1e-12)
    assert covariance_distance(x, wide) == pytest.approx(3 * np.linalg.norm(np.cov(x, rowvar=False)))


def test_distances_grow_with_the_square_and_the_shift_is_below_the_error(pair):
    x, y = pair
    assert row_mse(3 * x, 3 * y) == pytest.approx(9 * row_mse(x, y))
    assert covariance_distance(3 * x, 3 * y) == pytest.approx(9 * covariance_distance(x, y))
    assert mean_shift(3 * x, 3 * y) == pytest.approx(3 * mean_shift(x, y))
    assert mean_shift(x, y) ** 2 <= 4 * row_mse(x, y).mean()


def test_one_row_has_no_covariance(pair):
    x, y = (part[:1] for part in pair)
    assert covariance_distance(x, y) is None
    assert mean_shift(x, y) == pytest.approx(np.linalg.norm(x[0] - y[0]))


@pytest.mark.parametrize("function", [row_mse, mean_shift, covariance_distance])
def test_other_rows_are_refused(pair, function):
    x, y = pair
    for one, other in ((x, y[:8]), (x, y[:, :3]), (x[0], y[0]), (x[:0], y[:0])):
        with pytest.raises(ValueError, match="the same rows in both models"):
            function(one, other)
