# SPDX-License-Identifier: Apache-2.0
"""`remaining`: the share that is left, its interval over groups, and when it is undefined."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_unlearn.audit.robustness.recovery import NOT_RECOVERED, SUPPRESSED, UNRESOLVED, remaining, verdict


PEOPLE = [f"p{i // 4}" for i in range(32)]


def drawn(seed: int = 0, n: int = 32):
    rng = np.random.default_rng(seed)
    o, r = rng.uniform(0.7, 1.0, n), rng.uniform(0.0, 0.2, n)
    return o.tolist(), r.tolist(), rng


# Acceptance 1: arithmetic


def test_the_original_is_1_and_a_model_that_never_knew_is_0():
    o, r, _ = drawn()
    assert remaining(o, r, o, PEOPLE).value == 1
    assert remaining(r, r, o, PEOPLE).value == 0
    half = [(a + b) / 2 for a, b in zip(o, r, strict=True)]
    assert remaining(half, r, o, PEOPLE).value == pytest.approx(0.5)
    worse = remaining([value / 2 for value in r], r, o, PEOPLE)
    assert worse.value < 0
    assert verdict([worse]) == NOT_RECOVERED


def test_the_interval_is_that_of_a_slow_delta_method():
    o, r, rng = drawn(1)
    u = rng.uniform(0, 1, 32).tolist()
    found = remaining(u, r, o, PEOPLE, resolution=0.9)
    value = (math.fsum(u) - math.fsum(r)) / (math.fsum(o) - math.fsum(r))
    # Of the ratio of two means over people, by the gradient of the ratio.
    names = sorted(set(PEOPLE))
    top = [np.mean([u[i] - r[i] for i in range(32) if PEOPLE[i] == name]) for name in names]
    low = [np.mean([o[i] - r[i] for i in range(32) if PEOPLE[i] == name]) for name in names]
    gradient = np.array([1 / np.mean(low), -np.mean(top) / np.mean(low) ** 2])
    variance = gradient @ (np.cov(top, low) / len(names)) @ gradient
    half = stats.t.ppf(0.975, len(names) - 1) * math.sqrt(variance)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.interval == pytest.approx((value - half, value + half), abs=1e-9)
    assert found.details["clusters"] == 8


def test_rows_of_several_seeds_do_not_make_more_groups():
    o, r, rng = drawn(2)
    u = rng.uniform(0, 0.4, 32).tolist()
    once, thrice = remaining(u, r, o, PEOPLE), remaining(u * 3, r * 3, o * 3, PEOPLE * 3)
    assert thrice.value == pytest.approx(once.value)
    assert thrice.interval == pytest.approx(once.interval)


@pytest.mark.parametrize(
    ("known", "groups", "reason"),
    [
        (0.0, PEOPLE, "too little was there to forget"),
        (0.09, PEOPLE, "too little was there to forget"),
        (0.8, ["a", "b", "c"] * 10 + ["a", "b"], "3 groups of rows; an interval requires 4"),
        (0.8, ["a"] * 32, "1 group of rows; an interval requires 4"),
    ],
)
def test_what_cannot_be_said_is_none_with_a_reason(known, groups, reason):
    _, r, rng = drawn()
    o = [value + known for value in r]
    found = remaining(rng.uniform(0, 1, 32).tolist(), r, o, groups)
    assert found.value is None
    assert reason in found.details["reason"]
    assert verdict([found]) == UNRESOLVED


def test_a_wide_interval_across_the_bound_is_unresolved_and_beyond_it_is_not():
    o, r, rng = drawn(3)
    noise = np.repeat(rng.normal(0, 0.3, 8), 4)
    for share, said in ((0.2, UNRESOLVED), (0.9, SUPPRESSED)):
        u = [b + share * (a - b) + e for a, b, e in zip(o, r, noise, strict=True)]
        found = remaining(u, r, o, PEOPLE)
        assert verdict([found]) == said
        assert (found.value is None) == (said == UNRESOLVED)
    assert found.details["clusters"] == 8


def test_rows_that_a_model_leaves_undefined_are_counted_and_left_out():
    o, r, _ = drawn(4)
    u = [*r[:30], None, None]
    found = remaining(u, r, o, PEOPLE)
    assert (found.n, found.undefined, found.value) == (30, 2, 0)
    nothing = remaining([None] * 32, r, o, PEOPLE)
    assert nothing.value is None
    assert "no row is scored in all models" in nothing.details["reason"]


def test_all_that_is_left_bounds_as_many_groups_as_there_are():
    """Without an interval no gate would fail where nothing was forgotten."""
    o, r, _ = drawn()
    found = remaining(o, r, o, PEOPLE)
    # All of 8 groups.
    assert found.interval == pytest.approx((0.025 ** (1 / 8), 1.0))
    assert found.interval_method.startswith("clopper-pearson")
    assert verdict([found]) == SUPPRESSED
    assert remaining(o[:12], r[:12], o[:12], PEOPLE[:12]).value is None


def test_exact_zeros_bound_as_many_groups_as_there_are():
    o = [1.0] * 32
    found = remaining([0.0] * 32, [0.0] * 32, o, PEOPLE)
    assert found.value == 0
    # 0 of 8 people, not of 32 rows.
    assert found.interval == pytest.approx((0, 1 - 0.025 ** (1 / 8)))
    assert verdict([found]) == UNRESOLVED


# Acceptance 2: coverage


def batch(draws: int, clusters: int, icc: float, rows: int = 8, share: float = 0.3):
    """Scores `[draws, clusters * rows]` of a true `remaining` of `share`, whose rows are alike within a cluster."""
    rng = np.random.default_rng(clusters + int(100 * icc))

    def noise():
        between = np.repeat(rng.normal(size=(draws, clusters)), rows, axis=1)
        within = rng.normal(size=(draws, clusters * rows))
        return 0.15 * (math.sqrt(icc) * between + math.sqrt(1 - icc) * within)

    return 0.05 + 0.8 * share + noise(), 0.05 + noise(), 0.85 + noise()


@pytest.mark.parametrize(("clusters", "icc"), [(4, 0.0), (4, 0.3), (20, 0.0), (20, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(clusters, icc):
    draws, rows = 2000, 8
    u, r, o = batch(draws, clusters, icc)
    # All draws at once; the function itself is held against some of them below.
    value = (u - r).mean(1) / (o - r).mean(1)
    z = ((u - r) - value[:, None] * (o - r)) / (o - r).mean(1)[:, None]
    means = z.reshape(draws, clusters, rows).mean(2)
    half = stats.t.ppf(0.975, clusters - 1) * means.std(1, ddof=1) / math.sqrt(clusters)
    held = np.abs(value - 0.3) <= half
    assert 0.92 <= held.mean() <= 0.97
    groups = np.repeat(np.arange(clusters), rows).tolist()
    for i in range(40):
        found = remaining(u[i].tolist(), r[i].tolist(), o[i].tolist(), groups, resolution=0.99)
        assert found.interval == pytest.approx((value[i] - half[i], value[i] + half[i]))


def test_a_bootstrap_over_rows_would_not():
    # Why intervals are over groups: nobody should "simplify" this.
    draws, clusters = 300, 4
    u, r, o = batch(2000, clusters, 0.3)
    rng = np.random.default_rng(0)
    held = 0
    for i in range(draws):
        picks = rng.integers(u.shape[1], size=(400, u.shape[1]))
        resampled = (u[i] - r[i])[picks].mean(1) / (o[i] - r[i])[picks].mean(1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        held += low <= 0.3 <= high
    assert held / draws < 0.8


@pytest.mark.parametrize("people", [1, 3])
def test_other_rows_of_few_groups_give_no_interval(people):
    rng, groups = np.random.default_rng(0), [i // 4 for i in range(32)]
    u, h, o = (np.clip(mean + rng.normal(0, 0.02, 32), 0, 1).tolist() for mean in (0.1, 0.05, 0.9))
    found = remaining(u, h, o, groups, holdout_groups=[i % people for i in range(32)])
    assert found.value is None
    assert f"{people} group{'s' * (people > 1)} of holdout rows" in found.details["reason"]
    assert found.details["estimate"] == pytest.approx(0.06, abs=0.02)
    assert remaining(u, h, o, groups, holdout_groups=groups).value == pytest.approx(found.details["estimate"])


def test_the_interval_against_other_rows_holds_the_truth_too():
    draws, clusters = 300, 8
    u, r, o = batch(draws, clusters, 0.3)
    groups = np.repeat(np.arange(clusters), 8).tolist()
    others = [f"other {group}" for group in groups]
    held = 0
    for i in range(draws):
        found = remaining(
            u[i].tolist(), r[i].tolist(), o[i].tolist(), groups, holdout_groups=others, resolution=0.99, bound=0.99
        )
        held += found.interval[0] <= 0.3 <= found.interval[1]
    assert 0.92 <= held / draws <= 0.99
