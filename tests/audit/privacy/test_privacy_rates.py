# SPDX-License-Identifier: Apache-2.0
"""TPR at low FPR, AUC, their intervals and the best of several attacks: arithmetic, on arrays alone."""

import math

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest, mannwhitneyu
from sklearn.metrics import roc_auc_score, roc_curve

from hf_unlearn.audit.privacy.compare import auc_difference, rate_difference
from hf_unlearn.audit.privacy.rates import (
    auc_interval,
    auc_result,
    check_fprs,
    fpr_name,
    nonmembers_needed,
    roc_tpr,
    split_nonmembers,
    tpr_at_fpr,
    tpr_at_zero_fp,
)
from hf_unlearn.audit.privacy.worst import chance_of_maximum, worst_case


def slow_tpr(members, calibration, evaluation, fpr):
    """TPR, achieved FPR and threshold by counting, one row at a time."""
    k = 0
    while (k + 1) / (len(calibration) + 1) <= fpr + 1e-15:
        k += 1
    if k == 0:
        return None
    threshold = sorted(calibration, reverse=True)[k - 1]
    above = [sum(score > threshold for score in scores) / len(scores) for scores in (members, evaluation)]
    return above[0], above[1], threshold, k / (len(calibration) + 1)


@pytest.mark.parametrize("fpr", [1e-5, 1e-3, 5e-3, 1e-2, 0.05, 0.3])
@pytest.mark.parametrize("ties", [False, True])
def test_rates_equal_slow_counting(fpr, ties):
    rng = np.random.default_rng(1)
    members, calibration, evaluation = (rng.normal(mean, size=n) for mean, n in ((1, 83), (0, 400), (0, 211)))
    if ties:
        members, calibration, evaluation = (np.round(s, 1) for s in (members, calibration, evaluation))
    result, expected = (
        tpr_at_fpr(members, calibration, evaluation, fpr),
        slow_tpr(members, calibration, evaluation, fpr),
    )
    if expected is None:
        assert result.value is None
        assert result.details["status"] == "unresolved"
        assert result.details["needs_calibration"] == math.ceil(1 / fpr) - 1 > 400
        return
    about = result.details
    assert (result.value, about["achieved_fpr"], about["threshold"], about["chance"]) == pytest.approx(expected)
    hits = sum(member > expected[2] for member in members)
    exact = binomtest(hits, 83).proportion_ci(method="exact")
    assert about["interval_fixed_threshold"] == pytest.approx([exact.low, exact.high])
    # The threshold's own noise can only widen it.
    assert result.interval[0] <= exact.low + 1e-12
    assert result.interval[1] >= exact.high - 1e-12
    k = round(expected[3] * 401)
    assert about["p_chance"] == pytest.approx(betabinom(83, k, 401 - k).sf(hits - 1), rel=1e-6, abs=1e-12)
    assert sum(result.per_item) == hits


def test_the_smallest_resolved_rate_is_that_of_the_table():
    rng = np.random.default_rng(0)
    for fpr in (1e-3, 5e-4, 1e-2):
        n = nonmembers_needed(fpr)
        for size, resolved in ((n - 1, False), (n, True)):
            result = tpr_at_fpr(rng.normal(size=30), rng.normal(size=size), rng.normal(size=20), fpr)
            assert (result.value is not None) is resolved
    assert [nonmembers_needed(fpr) for fpr in (1e-2, 1e-3, 5e-4, 1e-4, 1e-5)] == [99, 999, 1999, 9999, 99999]


def test_what_is_unresolved_says_what_can_be_said():
    result = tpr_at_fpr(np.arange(40.0), np.arange(20.0), np.arange(10.0), 1e-3)
    assert result.value is None
    assert result.interval is None
    zero = result.details["zero_fp"]
    assert (zero["tpr"], zero["chance"]) == (0.5, 1 / 21)
    alone = tpr_at_zero_fp(np.arange(40.0), np.arange(20.0), np.arange(10.0))
    assert (alone.value, alone.details["threshold"], alone.details["achieved_fpr"]) == (0.5, 19.0, 0.0)


def test_equal_scores_find_nobody_and_say_so():
    same = np.full(500, 3.0)
    for tail in ("upper", "lower", "both"):
        result = tpr_at_fpr(same, same, same, 1e-2, tail)
        assert result.value == 0.0
        assert result.details["status"] == "tied"
        assert result.details["achieved_fpr"] == 0.0
    assert roc_tpr(same, same, 1e-2) == 0.0
    assert auc_result(same, same).value == 0.5


def test_a_collapsed_model_with_mostly_equal_scores_is_not_taken_for_a_leak():
    # 98 % of all scores are one value: a rule of `>=` calls them all members.
    rng = np.random.default_rng(0)
    sets = [np.where(rng.random(n) < 0.98, 1.0, rng.random(n)) for n in (1000, 900, 900)]
    result = tpr_at_fpr(*sets, 1e-3)
    assert result.value is None or result.value < 0.01
    assert tpr_at_fpr(*sets, 1e-2).value < 0.03


def test_both_tails_see_a_model_that_forgot_too_much():
    rng = np.random.default_rng(0)
    members, calibration, evaluation = rng.normal(-8, 1, 200), rng.normal(0, 1, 999), rng.normal(0, 1, 999)
    found = {
        tail: tpr_at_fpr(members, calibration, evaluation, 1e-2, tail).value for tail in ("upper", "lower", "both")
    }
    assert found["upper"] == 0
    assert found["lower"] == found["both"] == 1
    assert auc_result(members, calibration).value == 0


def coverage(n_members, n_calibration, fpr, tail, runs=200):
    """How often the interval of random scores holds the chance level, and how often their TPR is within its range."""
    inside = within = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        sets = [rng.standard_t(4, size=n) for n in (n_members, n_calibration, 200)]
        result = tpr_at_fpr(*sets, fpr, tail)
        low, high = result.details["chance_range"]
        inside += result.interval[0] <= result.details["chance"] <= result.interval[1]
        within += low <= result.value <= high
    return inside / runs, within / runs


@pytest.mark.parametrize(
    ("n_members", "n_calibration", "fpr"), [(200, 2000, 1e-2), (1000, 500, 1e-2), (300, 999, 1e-3), (50, 60, 0.1)]
)
@pytest.mark.parametrize("tail", ["upper", "both"])
def test_random_scores_give_the_chance_level_inside_the_interval(n_members, n_calibration, fpr, tail):
    inside, within = coverage(n_members, n_calibration, fpr, tail)
    # 95 %, exact intervals being a little wide; three standard errors of 200 runs are 4.6 %.
    assert inside >= 0.905
    assert within >= 0.905


def test_without_the_thresholds_noise_intervals_would_be_too_narrow():
    plain = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        result = tpr_at_fpr(*(rng.normal(size=n) for n in (4000, 500, 100)), 1e-2)
        low, high = result.details["interval_fixed_threshold"]
        plain += low <= result.details["chance"] <= high
    assert plain / 200 < 0.7


def test_auc_and_roc_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(3)
    members, others = np.round(rng.normal(0.4, size=70), 1), np.round(rng.normal(size=90), 1)
    labels, scores = np.r_[np.ones(70), np.zeros(90)], np.r_[members, others]
    result = auc_result(members, others)
    assert result.value == pytest.approx(roc_auc_score(labels, scores))
    assert result.value == pytest.approx(mannwhitneyu(members, others).statistic / (70 * 90))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for fpr in (0.02, 0.1, 0.5):
        assert roc_tpr(members, others, fpr) == max(t for f, t in zip(false, true, strict=True) if f <= fpr)
    assert roc_tpr(members, others, 1e-3) is None


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (40, 60)), (1.0, (40, 60)), (0.5, (15, 300)), (2.5, (30, 30))])
def test_the_interval_of_an_auc_covers(shift, sizes):
    from scipy.stats import norm

    truth, inside = norm.cdf(shift / math.sqrt(2)), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        low, high = auc_result(rng.normal(shift, size=sizes[0]), rng.normal(size=sizes[1])).interval
        inside += low <= truth <= high
    assert 0.91 <= inside / 300


def test_a_perfect_auc_keeps_an_interval():
    assert 0.8 < auc_interval(1.0, 20, 20)[0] < 1
    assert auc_interval(1.0, 20, 20)[1] == 1
    assert auc_interval(0.0, 20, 20)[0] == 0
    low, high = auc_interval(0.3, 20, 30)
    mirrored = auc_interval(0.7, 20, 30)
    assert (1 - high, 1 - low) == pytest.approx(mirrored)


def slow_maximum(scores, is_calibration, k):
    """The best TPR over attacks for one assignment of the rows."""
    best = 0.0
    for row in scores:
        threshold = sorted(row[is_calibration], reverse=True)[k - 1]
        best = max(best, (row[~is_calibration] > threshold).mean())
    return best


def test_the_chance_of_the_maximum_is_that_of_permuted_rows():
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(3, 60)), 1)
    scores[1, :5] = -np.inf
    drawn = chance_of_maximum(scores, 20, [1, 4], draws=30, seed=7)
    rng = np.random.default_rng(7)
    for draw in range(30):
        is_calibration = np.zeros(60, dtype=bool)
        is_calibration[rng.choice(60, 40, replace=False)] = True
        for place, k in enumerate((1, 4)):
            assert drawn[place, draw] == pytest.approx(slow_maximum(scores, is_calibration, k))


def test_the_best_of_many_attacks_has_a_higher_chance_level_unless_they_say_the_same():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 700))
    alone = chance_of_maximum(one, 200, [5], draws=300).mean()
    assert alone == pytest.approx(5 / 501, rel=0.25)
    assert chance_of_maximum(np.repeat(one, 8, axis=0), 200, [5], draws=300).mean() == pytest.approx(alone)
    assert chance_of_maximum(rng.normal(size=(8, 700)), 200, [5], draws=300).mean() > 2 * alone


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=80), rng.normal(size=100)
    shift = rng.normal(0, 0.05, size=80), rng.normal(0, 0.05, size=100)
    near = auc_difference(members, others, members + shift[0], others + shift[1])
    far = auc_difference(members, others, rng.permutation(members), rng.permutation(others))
    assert near.interval[1] - near.interval[0] < 0.3 * (far.interval[1] - far.interval[0])
    assert near.value == pytest.approx(
        auc_result(members, others).value - auc_result(members + shift[0], others + shift[1]).value
    )
    assert auc_difference(members, others, members, others).interval is None

    found, gold = [1.0] * 30 + [0.0] * 70, [0.0] * 22 + [1.0] * 10 + [0.0] * 68
    result = rate_difference("tpr@1e-3", [*found, None], [*gold, 1.0])
    assert (result.value, result.n, result.undefined) == (pytest.approx(0.2), 100, 1)
    assert result.details["p_mcnemar"] == pytest.approx(binomtest(22, 24).pvalue)
    assert result.interval[0] < 0.2 < result.interval[1]


def test_delong_covers_the_difference_of_two_models():
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base, rest = rng.normal(size=60), rng.normal(size=80)
        noisy = [scores + rng.normal(0, 0.7, size=len(scores)) for scores in (base, rest, base, rest)]
        low, high = auc_difference(*noisy).interval
        inside += low <= 0 <= high
    assert 0.9 <= inside / 200


@pytest.mark.parametrize("bad", [[], [0.0], [1.0], [-1e-3], ["1e-3"], [float("nan")], [True], [1 - 1e-12], [5e-324]])
def test_rates_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        check_fprs(bad)


def test_rates_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"0\.01 and 0\.01000000001 would both be named 'tpr@1e-2'"):
        check_fprs([0.1, 1e-2, 0.01000000001])


@pytest.mark.parametrize("n", [5, 40, 1500])
@pytest.mark.parametrize("fpr", [1e-12, 0.999])
def test_rates_at_the_ends_have_a_number(fpr, n):
    scores = np.random.default_rng(0).normal(size=3 * n)
    result = tpr_at_fpr(scores[:n], scores[n : 2 * n], scores[2 * n :], fpr, "both")
    assert (result.value is None) == (fpr < 0.5)
    roc_tpr(scores[:n], scores[n:], fpr)
    worst = worst_case({f"a/tpr@{fpr_name(fpr)}": result}, scores[None, : 2 * n], n, [fpr])
    assert worst[f"worst/tpr@{fpr_name(fpr)}"].value == result.value


def test_rates_and_splits_are_orderly():
    assert check_fprs([1e-2, 1e-5, 1e-2]) == [1e-5, 1e-2]
    assert [fpr_name(fpr) for fpr in (1e-5, 5e-4, 1e-2, 0.25)] == ["1e-5", "5e-4", "1e-2", "2.5e-1"]
    first, second = split_nonmembers(101, 0.5, seed=3)
    assert sorted([*first, *second]) == list(range(101))
    assert len(first) == 50
    again = split_nonmembers(101, 0.5, seed=3)
    assert first.tolist() == again[0].tolist()
    assert first.tolist() != split_nonmembers(101, 0.5, seed=4)[0].tolist()
