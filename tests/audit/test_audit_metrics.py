# SPDX-License-Identifier: Apache-2.0
"""The audit's metrics against slow formulas written out here."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from hf_unlearn.audit import (
    MetricResult,
    exact_match,
    exact_memorization,
    extraction_strength,
    forget_quality,
    log_truth_ratios,
    model_utility,
    probability,
    rouge,
    truth_ratio,
)
from hf_unlearn.audit.result import bootstrap_interval, mean_result, proportion_interval


RIGHT = [-0.2, -1.5, -3.0]
WRONG = [[-1.0, -2.0], [-1.0, -1.0, -1.2], [-0.1, -4.0]]


def test_probability_is_the_geometric_mean_of_token_probabilities():
    tokens = [[0.9, 0.5, 0.7], [0.2]]
    logps = [sum(math.log(p) for p in item) / len(item) for item in tokens]
    expected = [math.prod(item) ** (1 / len(item)) for item in tokens]
    result = probability([*logps, None], role="forget")
    assert result.per_item[:2] == pytest.approx(expected)
    assert result.per_item[2] is None
    assert result.value == pytest.approx(sum(expected) / 2)
    assert (result.n, result.undefined, result.direction, result.variant) == (2, 1, "lower", None)


def test_normalized_probability():
    expected = [math.exp(a) / (math.exp(a) + sum(map(math.exp, w))) for a, w in zip(RIGHT, WRONG, strict=True)]
    result = probability(RIGHT, WRONG)
    assert result.per_item == pytest.approx(expected)
    assert (result.variant, result.direction) == ("normalized", "higher")
    # Nothing under- or overflows where exp(-1000) is 0.
    assert probability([-1000.0], [[-1000.0, -1000.0, -1000.0]]).value == pytest.approx(0.25)
    assert probability([-1.0, -1.0], [[], [-1.0, None]]).per_item == [None, None]


@pytest.mark.parametrize("variant", ["arithmetic", "geometric"])
def test_truth_ratios(variant):
    mean = {"arithmetic": np.mean, "geometric": lambda p: np.prod(p) ** (1 / len(p))}[variant]
    ratios = [mean(np.exp(w)) / math.exp(a) for a, w in zip(RIGHT, WRONG, strict=True)]
    logs = log_truth_ratios(RIGHT, WRONG, variant)
    assert np.exp(logs) == pytest.approx(ratios)
    forget = truth_ratio(logs, variant, "forget")
    assert forget.per_item == pytest.approx([min(r, 1 / r) for r in ratios])
    assert (forget.direction, forget.variant) == ("closer_to_retrained", variant)
    retain = truth_ratio(logs, variant, "retain")
    assert retain.per_item == pytest.approx([max(0, 1 - r) for r in ratios])
    assert retain.value == pytest.approx(np.mean([max(0, 1 - r) for r in ratios]))
    assert retain.direction == "higher"


def test_prob_mean_is_the_share_of_the_right_answer():
    expected = [math.exp(a) / (math.exp(a) + math.exp(np.mean(w))) for a, w in zip(RIGHT, WRONG, strict=True)]
    logs = log_truth_ratios(RIGHT, WRONG, "prob_mean")
    assert truth_ratio(logs, "prob_mean", "forget").per_item == pytest.approx(expected)
    assert truth_ratio(logs, "prob_mean", "retain").per_item == pytest.approx(expected)
    assert truth_ratio([800.0, -800.0], "prob_mean").per_item == [0.0, 1.0]


def test_truth_ratio_invariances():
    # Scaling all probabilities changes nothing; neither does the order of the wrong answers.
    for variant in ("arithmetic", "geometric"):
        base = log_truth_ratios(RIGHT, WRONG, variant)
        shifted = log_truth_ratios([a - 2 for a in RIGHT], [[x - 2 for x in w] for w in WRONG], variant)
        assert shifted == pytest.approx(base)
        assert log_truth_ratios(RIGHT, [w[::-1] for w in WRONG], variant) == pytest.approx(base)
        # The forget form does not know R from 1/R; the retain form does.
        flipped = [-x for x in base]
        assert truth_ratio(flipped, variant, "forget").value == pytest.approx(
            truth_ratio(base, variant, "forget").value
        )
        assert truth_ratio(flipped, variant, "retain").value != pytest.approx(
            truth_ratio(base, variant, "retain").value
        )
    same = log_truth_ratios([-1.0], [[-1.0, -1.0]], "arithmetic")
    assert truth_ratio(same, role="forget").value == pytest.approx(1)
    assert truth_ratio(same, role="retain").value == pytest.approx(0)


def test_truth_ratio_of_a_collapsed_model_is_finite():
    logs = log_truth_ratios([-2000.0, -5.0], [[-1.0], [-3000.0]], "arithmetic")
    assert logs == pytest.approx([1999.0, -2995.0])
    assert truth_ratio(logs, role="retain").per_item == [0.0, 1.0]
    assert truth_ratio(logs, role="forget").per_item == [0.0, 0.0]


def test_truth_ratio_undefined_items():
    logs = log_truth_ratios([None, -1.0, -1.0, float("nan"), -1.0], [[-1.0], [], [-1.0, None], [-1.0], [-2.0]])
    assert logs == [None, None, None, None, pytest.approx(-1.0)]
    result = truth_ratio(logs)
    assert (result.n, result.undefined) == (1, 4)
    with pytest.raises(ValueError, match="harmonic.*arithmetic, geometric, prob_mean"):
        log_truth_ratios([-1.0], [[-1.0]], "harmonic")


def test_exact_memorization():
    result = exact_memorization([[True, False, True, True], [False], []], role="forget")
    assert result.per_item == [0.75, 0.0, None]
    assert (result.value, result.n, result.undefined) == (0.375, 2, 1)


def slow_extraction_strength(flags):
    n = len(flags)
    return next(1 - k / n for k in range(n + 1) if all(flags[k:]))


def test_extraction_strength_equals_the_definition():
    rng = np.random.default_rng(0)
    flags = [list(rng.random(n) < 0.7) for n in rng.integers(1, 12, size=200)]
    result = extraction_strength(flags)
    assert result.per_item == pytest.approx([slow_extraction_strength(f) for f in flags])
    assert extraction_strength([[False, False], [True, False]]).per_item == [0.0, 0.0]
    assert extraction_strength([[True, True], [False, True]]).per_item == [1.0, 0.5]
    assert extraction_strength([[]]).per_item == [None]


def slow_lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_is_recall_of_the_expected_answer():
    pairs = [
        ("the cat sat on a mat by the door today", "the cat sat on the mat"),
        ("mat the on sat", "the cat sat"),
        ("", "the cat sat"),
        ("a b c", "a b c"),
    ]
    expected = [slow_lcs(p.split(), r.split()) / len(r.split()) for p, r in pairs]
    result = rouge([p for p, _ in pairs], [r for _, r in pairs], role="forget")
    assert result.per_item == pytest.approx(expected)
    assert result.per_item[0] == pytest.approx(5 / 6)
    # Stems are compared; the argument order matters, so recall is not precision.
    assert rouge(["He was writing novels."], ["He writes a novel"]).value == pytest.approx(3 / 4)


def test_rouge_without_words_is_undefined_and_takes_a_tokenizer():
    class Characters:
        def tokenize(self, text):
            return list(text)

    assert rouge(["東京都"], ["東京"]).value is None
    assert rouge(["東京都"], ["東京"], tokenizer=Characters()).value == 1.0
    assert rouge([None, "a"], ["a", "a"]).per_item == [None, 1.0]


def test_exact_match_ignores_case_and_white_space_only():
    result = exact_match(["In  Oslo.\n", "in oslo", "In OSLO.", ""], ["In Oslo."] * 4)
    assert result.per_item == [1.0, 0.0, 1.0, 0.0]
    assert result.interval_method == "clopper-pearson"
    # Bounds of Clopper and Pearson through the beta distribution.
    assert result.interval == pytest.approx((beta.ppf(0.025, 2, 3), beta.ppf(0.975, 3, 2)))


def test_forget_quality_by_hand():
    values, reference = [0.1, 0.2, 0.3, 0.9], [0.5, 0.6, 0.7, 0.8]
    result = forget_quality(values, reference)
    # The distribution functions are furthest apart at 0.3: 3/4 against 0.
    assert result.details["statistic"] == pytest.approx(0.75)
    # Of the C(8, 4) = 70 orders of 4 + 4 values, those at least as far apart, counted one by one.
    assert result.value == pytest.approx(slow_ks_p_value(4, 0.75))
    assert result.details["log10_p"] == pytest.approx(math.log10(result.value))
    assert (result.direction, result.n, result.interval) == ("higher", 4, None)
    transformed = forget_quality(np.exp(values).tolist(), np.exp(reference).tolist())
    assert transformed.value == pytest.approx(result.value)
    assert forget_quality(values, values).value == pytest.approx(1.0)


def slow_ks_p_value(n, statistic):
    from itertools import combinations

    far = total = 0
    for chosen in combinations(range(2 * n), n):
        steps = np.where(np.isin(np.arange(2 * n), chosen), 1 / n, -1 / n)
        far += np.abs(np.cumsum(steps)).max() >= statistic - 1e-9
        total += 1
    return far / total


def test_forget_quality_reference_floor():
    # Samples of 400 that do not overlap: the value that OpenUnlearning prints for gradient ascent on forget10.
    result = forget_quality(list(range(400)), list(range(1000, 1400)))
    assert result.value == pytest.approx(1.06e-239, rel=0.01)
    assert result.details["log10_p"] == pytest.approx(-238.97, abs=0.01)


@pytest.mark.parametrize("reference", [None, [], [None, None]])
def test_forget_quality_refuses_without_retrained_model(reference):
    with pytest.raises(ValueError, match="retrained without the forget set"):
        forget_quality([0.1, 0.2], reference)


def test_forget_quality_of_a_diverged_model_is_undefined():
    result = forget_quality([None, float("nan")], [0.1, 0.2])
    assert (result.value, result.n, result.undefined) == (None, 0, 2)
    assert result.details["log10_p"] is None


def test_model_utility():
    rng = np.random.default_rng(0)
    columns = {
        f"{name}/{metric}": rng.random(size).tolist()
        for name, size in (("retain", 40), ("world_facts", 20))
        for metric in ("probability", "rouge", "truth_ratio")
    }
    result = model_utility({key: mean_result(key, column, "higher") for key, column in columns.items()})
    means = [sum(column) / len(column) for column in columns.values()]
    assert result.value == pytest.approx(6 / sum(1 / mean for mean in means))
    assert result.n == 60
    assert result.variant.startswith("6 terms: retain/probability, ")
    assert result.details["terms"]["retain/rouge"] == pytest.approx(means[1])
    low, high = result.interval
    assert low < result.value < high
    assert high - low < 0.4


def test_model_utility_zero_none_and_errors():
    one, zero = mean_result("rouge", [1.0, 0.5], "higher"), mean_result("rouge", [0.0, 0.0], "higher")
    undefined = mean_result("rouge", [None, None], "higher")
    assert model_utility({"a/x": one, "a/y": zero}).value == 0.0
    assert model_utility({"a/x": one, "a/y": undefined}).value is None
    assert model_utility({"a/x": one, "a/y": undefined}).interval is None
    with pytest.raises(ValueError, match="at least one term"):
        model_utility({})
    with pytest.raises(ValueError, match="'a' have \\[1, 2\\] items"):
        model_utility({"a/x": one, "a/y": mean_result("rouge", [1.0], "higher")})


def test_intervals_cover():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.beta(2, 3, size=60), resamples=400)
        covered += low <= 0.4 <= high
    # 95% less what a percentile bootstrap of 60 values loses; 200 trials have a standard error of 1.7 points.
    assert 0.88 <= covered / 200 <= 0.99
    covered = sum(low <= 0.1 <= high for low, high in map(proportion_interval, rng.binomial(40, 0.1, 400), [40] * 400))
    assert covered / 400 >= 0.94


def test_intervals_that_say_nothing():
    assert proportion_interval(0, 32) == pytest.approx((0.0, 1 - 0.025 ** (1 / 32)))
    assert proportion_interval(32, 32)[1] == 1.0
    assert proportion_interval(0, 0) is None
    assert bootstrap_interval(np.array([0.5])) is None
    assert bootstrap_interval(np.ones(9)) is None
    assert bootstrap_interval(np.arange(9.0)) == bootstrap_interval(np.arange(9.0))
    result = exact_match([], [])
    assert (result.value, result.n, result.interval) == (None, 0, None)


def test_bootstrap_of_large_samples_stays_in_memory_and_exact():
    values = np.random.default_rng(0).random(5000)
    low, high = bootstrap_interval(values)
    standard_error = values.std() / math.sqrt(5000)
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=standard_error / 3)


def test_result_to_dict_and_back():
    result = exact_match(["a", "b"], ["a", "a"], role="holdout")
    saved = result.to_dict()
    assert set(saved) == {
        "value", "n", "undefined", "interval", "interval_method", "direction", "variant", "details",
    }  # fmt: skip
    assert saved["direction"] == "none"
    assert MetricResult.from_dict("exact_match", result.to_dict(per_item=True)) == result
    with pytest.raises(ValueError, match="'victim'.*forget, retain, holdout"):
        exact_match(["a"], ["a"], role="victim")
