# SPDX-License-Identifier: Apache-2.0
"""Intervals of means whose items are all 0 or all 1, where resampling says nothing."""

import numpy as np
import pytest

from hf_unlearn.audit.result import mean_result


@pytest.mark.parametrize("name", ["accuracy", "probability", "rouge"])
def test_a_mean_of_zeros_or_ones_has_the_interval_of_the_share(name):
    none, every = (mean_result(name, [value] * 60, "lower") for value in (0.0, 1.0))
    # Of 0 successes in n: 1 - (alpha / 2)^(1 / n).
    assert none.interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 60)))
    assert every.interval == pytest.approx((0.025 ** (1 / 60), 1.0))
    assert none.interval_method == every.interval_method == "clopper-pearson (all items 0 or all 1)"


def test_it_seldom_misses_a_mean_that_is_just_above_it():
    """Samples that are all 0 although the mean is larger than their interval's end are rare, as 95 % promises."""
    rng = np.random.default_rng(0)
    share, item = 0.06, 0.998
    samples = rng.random((2000, 60)) < share
    empty = sum(not sample.any() for sample in samples)
    low, high = mean_result("accuracy", [0.0] * 60, "lower").interval
    assert low == 0 < high < share * item
    assert 0 < empty / len(samples) <= 0.05


@pytest.mark.parametrize(
    ("name", "items"),
    [
        # May be negative, or larger than 1: zeros say nothing of what else there may be.
        ("probability_gain", [0.0] * 9),
        ("truth_ratio", [1.0] * 9),
        ("entropy", [0.0] * 9),
        # Equal, but at no end of the range.
        ("accuracy", [0.3] * 9),
        ("accuracy", [None, None]),
    ],
)
def test_where_nothing_is_known_there_is_no_interval(name, items):
    result = mean_result(name, items, "lower")
    assert result.interval is None
    assert result.interval_method is None


def test_items_that_differ_are_resampled():
    result = mean_result("accuracy", [0.0] * 9 + [1.0], "lower")
    assert result.interval_method == "bootstrap percentile"
