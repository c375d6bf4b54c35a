# SPDX-License-Identifier: Apache-2.0
"""What metrics refuse at the door, and what is never in a result: NaN, a loss for a log-probability, another metric's
definition."""

import json

import numpy as np
import pytest

from hf_unlearn.audit import (
    MetricResult,
    audit_rwku,
    exact_match,
    exact_memorization,
    extraction_strength,
    fluency,
    forget_quality,
    gain,
    holdout_auc,
    linear_cka,
    log_truth_ratios,
    mcnemar,
    membership_auc,
    membership_scores,
    model_utility,
    privleak,
    probability,
    rouge,
    truth_ratio,
)
from hf_unlearn.audit.distance import covariance_distance, mean_shift, row_mse
from hf_unlearn.audit.inputs import Labelled
from hf_unlearn.audit.muse.privleak import scores_in
from hf_unlearn.audit.privacy.rates import auc_result, nonmembers_needed, roc_tpr, tpr_at_fpr, tpr_at_zero_fp
from hf_unlearn.audit.result import mean_result, proportion_result
from hf_unlearn.audit.rwku.overlap import published_rouge


NAN, INF = float("nan"), float("inf")
SCORES = np.linspace(-3.0, 3.0, 40)


def holed(values, *holes):
    values = np.array(values, dtype=float)
    values[: len(holes)] = holes
    return values


# Never in a result


@pytest.mark.parametrize(
    "made",
    [
        lambda bad: probability([bad, -1.0]),
        lambda bad: probability([-1.0, -1.0], [[bad], [-2.0]]),
        lambda bad: truth_ratio(log_truth_ratios([bad, -1.0], [[-2.0], [-2.0]])),
        lambda bad: truth_ratio([bad, 0.5], role="forget"),
        lambda bad: truth_ratio([bad, 0.5], "prob_mean"),
        lambda bad: forget_quality([bad, 0.5], [0.1, bad]),
        lambda bad: gain("rouge", [bad, 0.5], [0.5, 0.75]),
        lambda bad: gain("exact_match", [bad, 1.0], [1.0, 0.0], binary=True),
        lambda bad: mean_result("entropy", [bad, 0.5], "none"),
        lambda bad: proportion_result("agreement", [bad, 1.0], "none"),
        lambda bad: holdout_auc([bad, -1.0, -2.0], [-1.5, -3.0]),
        lambda bad: privleak([bad, -1.0, -2.0], [-1.5, -3.0], 0.5),
        lambda bad: auc_result(holed(SCORES, bad), SCORES - 1),
        lambda bad: tpr_at_fpr(holed(SCORES, bad), SCORES - 1, SCORES - 1, 0.1),
        lambda bad: tpr_at_fpr(holed(SCORES, bad), SCORES - 1, SCORES - 1, 1e-6),
        lambda bad: tpr_at_zero_fp(holed(SCORES, bad), SCORES - 1, SCORES - 1),
    ],
)
@pytest.mark.parametrize("bad", [NAN, -INF])
def test_what_is_not_finite_is_undefined_and_counted(made, bad):
    result, clean = made(bad), made(None)
    assert result.undefined == 1
    assert result == clean
    json.dumps(result.to_dict(per_item=True), allow_nan=False)


def test_scores_without_a_value_are_left_out_of_rates_on_either_side():
    members, others = SCORES, SCORES - 1
    for bad in (NAN, INF, -INF):
        worse = np.append(others, bad)
        assert auc_result(members, worse).value == auc_result(members, others).value
        assert auc_result(members, worse).details["undefined_nonmembers"] == 1
        assert tpr_at_fpr(members, worse, worse, 0.1) == tpr_at_fpr(members, others, others, 0.1)
        assert roc_tpr(np.append(members, bad), worse, 0.1) == roc_tpr(members, others, 0.1)


def test_where_no_score_is_finite_nothing_is_said():
    nothing = np.full(5, NAN)
    for result in (
        auc_result(nothing, SCORES),
        auc_result(SCORES, nothing),
        tpr_at_fpr(nothing, SCORES, SCORES, 0.1),
        tpr_at_fpr(SCORES, nothing, SCORES, 0.1),
        tpr_at_zero_fp(SCORES, SCORES, nothing),
    ):
        assert (result.value, result.interval, result.details["status"]) == (None, None, "undefined")
    assert roc_tpr(nothing, SCORES, 0.1) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"value": NAN},
        {"value": np.float32("inf")},
        {"interval": (0.0, NAN)},
        {"per_item": [0.5, INF]},
        {"details": {"terms": {"a": [NAN]}}},
    ],
)
def test_a_result_refuses_what_is_not_finite(fields):
    with pytest.raises(ValueError, match="rouge: .* holds NaN or infinity"):
        MetricResult(**{"name": "rouge", "value": 0.5, "n": 2, "direction": "lower", **fields})


def test_a_result_refuses_another_direction():
    with pytest.raises(ValueError, match="direction='down'; allowed: higher, lower, closer_to_retrained, none"):
        MetricResult("rouge", 0.5, 2, "down")


# At the door


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: probability([2.0]), "logps: item 0 is 2, and no log-probability is above 0"),
        (lambda: probability([-1.0], [[-1.0, 0.7]]), r"wrong_logps\[0\]: item 1 is 0.7, and no log-probability"),
        (lambda: probability([INF]), "item 0 is inf, and no log-probability"),
        (lambda: log_truth_ratios([2.0], [[-1.0]]), "logps: item 0 is 2"),
        (lambda: log_truth_ratios([-2.0], [[1.0]]), r"wrong_logps\[0\]: item 0 is 1"),
        (lambda: log_truth_ratios([-2.0], [[-1.0], [-1.0]]), "Got 1 logps and 2 wrong_logps"),
        (lambda: probability(-1.0), "logps is float -1.0; give a list"),
        (lambda: probability(np.zeros((2, 2))), r"logps is an array of shape \(2, 2\)"),
        (lambda: probability(["-1"]), "logps: item 0 is '-1'; give numbers"),
        (lambda: probability([False]), "logps: item 0 is False; give numbers"),
        (lambda: probability([-1.0], [-1.0]), r"wrong_logps\[0\] is float -1.0; give a list"),
        (lambda: truth_ratio("ab"), "log_ratios is str 'ab'; give a list"),
        (lambda: rouge("abc", "abc"), "predictions is the one text 'abc'; give a list of texts"),
        (lambda: rouge(["abc"], "abc"), "references is the one text 'abc'"),
        (lambda: rouge(["a", "b"], ["a"]), "Got 2 predictions and 1 references"),
        (lambda: rouge([True], ["a"]), r"predictions: item 0 is True; give a text \(or None\)"),
        (lambda: rouge(["a"], [None]), "references: item 0 is None; give a text"),
        (lambda: rouge(np.array([["a"]]), ["a"]), r"an array of shape \(1, 1\)"),
        (lambda: exact_match("abc", "abc"), "predictions is the one text"),
        (lambda: exact_match(["a"], [1]), "references: item 0 is 1"),
        (lambda: published_rouge("abc", "abc"), "predictions is the one text"),
        (lambda: fluency("abc"), "texts is the one text"),
        (lambda: exact_memorization([True, False]), r"correct\[0\] is bool True; give a list"),
        (lambda: exact_memorization([[0.3]]), r"correct\[0\] holds 0.3; give true or false"),
        (lambda: extraction_strength(["ab"]), r"correct\[0\] is str 'ab'"),
        (lambda: extraction_strength(np.ones(3, dtype=bool)), r"correct\[0\] is bool"),
        (lambda: gain("rouge", [0.5], [0.5, 1.0]), "Got 1 before and 2 after"),
        (lambda: gain("rouge", "a", "b"), "before is str 'a'"),
        (lambda: mcnemar(-1, 2), "gained=-1; give a number of items"),
        (lambda: mcnemar(1, 2.5), "lost=2.5"),
        (lambda: auc_result([], [0.5]), "members is empty"),
        (lambda: auc_result(np.zeros((3, 1)), np.zeros(3)), r"members is an array of shape \(3, 1\)"),
        (lambda: auc_result(["a"], [0.5]), "members: item 0 is 'a'"),
        (lambda: tpr_at_fpr(SCORES, SCORES, SCORES, 0.0), "fpr=0.0; give the share, above 0 and below 1"),
        (lambda: tpr_at_fpr(SCORES, SCORES, SCORES, 1.0), "fpr=1.0; give the share, above 0 and below 1"),
        (lambda: tpr_at_fpr(SCORES, SCORES, SCORES, NAN), "fpr=nan; give the share"),
        (lambda: tpr_at_fpr(SCORES, SCORES, [], 0.1), "evaluation is empty"),
        (lambda: tpr_at_fpr(SCORES, SCORES, SCORES, 0.1, "left"), "tail='left'; allowed: upper, lower, both"),
        (lambda: roc_tpr(SCORES, SCORES, 1.5), "fpr=1.5; give the share, above 0 and at most 1"),
        (lambda: nonmembers_needed(0), "fpr=0; give the share"),
        (lambda: holdout_auc([-1.0], [-2.0], k=1.5), "k=1.5; give the share, above 0 and at most 1"),
        (lambda: membership_scores(None, None, "one text"), "texts is the one text 'one text'"),
        (lambda: linear_cka(SCORES, SCORES), r"x has the shape \(40,\)"),
        (lambda: linear_cka(np.array([["a"], ["b"]]), np.zeros((2, 1))), "x has the shape"),
        (lambda: row_mse(SCORES, SCORES), "Distances need the same rows"),
        (lambda: mean_result("rouge", "ab", "lower"), "rouge is str 'ab'"),
        (lambda: proportion_result("agreement", [0.5], "none"), "agreement is a share of ones, and an item is 0.5"),
    ],
)  # fmt: skip
def test_one_line_says_what_was_passed_and_what_belongs_there(asked, message):
    with pytest.raises(ValueError, match=message) as told:
        asked()
    assert "\n" not in str(told.value)


def test_rounding_above_zero_is_a_probability_of_one():
    assert probability([3e-7]).per_item == [1.0]


# Definitions


def test_ratios_say_their_variant():
    right, wrong = [-1.0, -2.0], [[-2.0, -3.0], [-1.0, -4.0]]
    for variant in ("arithmetic", "geometric", "prob_mean"):
        ratios = log_truth_ratios(right, wrong, variant)
        assert truth_ratio(ratios) == truth_ratio(ratios, variant)
        assert truth_ratio(ratios).variant == variant
    # Another score of the same ratio is a choice, another ratio a mistake.
    assert truth_ratio(log_truth_ratios(right, wrong, "geometric"), "prob_mean").variant == "prob_mean"
    with pytest.raises(ValueError, match="variant='arithmetic', and the values were made with variant='prob_mean'"):
        truth_ratio(ratios, "arithmetic")
    with pytest.raises(ValueError, match="variant='geometric'"):
        forget_quality(ratios, log_truth_ratios(right, wrong, "arithmetic"), "geometric")
    with pytest.raises(ValueError, match="variant"):
        forget_quality(log_truth_ratios(right, wrong, "arithmetic"), log_truth_ratios(right, wrong, "geometric"))
    assert forget_quality(ratios, ratios).variant == "prob_mean"


def test_min_k_scores_say_their_k():
    forget, holdout = Labelled([-3.0, -2.0], 0.2), Labelled([-2.5, -4.0], 0.2)
    result = holdout_auc(forget, holdout)
    assert result.variant.startswith("Min-20%")
    assert [scores.definition for scores in scores_in(result)] == [0.2, 0.2]
    assert privleak(forget, holdout, 0.5).variant.startswith("Min-20%")
    for other in ({"k": 0.4}, {"holdout": Labelled(holdout, 0.4)}):
        with pytest.raises(ValueError, match="Scores of k=0.2 and k=0.4 do not compare"):
            holdout_auc(**{"forget": forget, "holdout": holdout, **other})
    with pytest.raises(ValueError, match="do not compare"):
        privleak(forget, holdout, (Labelled(forget, 0.4), Labelled(holdout, 0.4)))
    with pytest.raises(ValueError, match="published AUCs are of Min-40%, and the scores are of Min-20%"):
        privleak(forget, holdout, "news")
    assert holdout_auc([-3.0], [-2.0]).variant.startswith("Min-40%")


def test_a_saved_auc_of_an_older_version_still_says_its_k():
    saved = holdout_auc(Labelled([-3.0, -2.0], 0.2), Labelled([-2.5], 0.2)).to_dict(per_item=True)
    del saved["details"]["k"]
    assert [scores.definition for scores in scores_in(MetricResult.from_dict("min_k_auc", saved))] == [0.2, 0.2]


def test_the_two_orientations_of_an_auc_cannot_be_mistaken():
    members, others = [-1.0, -2.0, -1.5], [-3.0, -1.8]
    muse = holdout_auc(members, others)
    assert muse.value == pytest.approx(1 - auc_result(members, others).value)
    assert (muse.name, auc_result(members, others).name) == ("min_k_auc", "auc")
    with pytest.warns(FutureWarning, match="is called `holdout_auc`"):
        assert membership_auc(members, others) == muse


def test_utility_takes_terms_of_sets_to_be_kept():
    forgotten = probability([-1.0, -2.0], role="forget")
    with pytest.raises(ValueError, match="retain/probability: better is 'lower'"):
        model_utility({"retain/probability": forgotten, "retain/rouge": rouge(["a", "b"], ["a", "a"])})


def test_utility_takes_terms_of_one_definition():
    right, wrong = [-1.0, -2.0], [[-2.0], [-3.0]]
    ratios = {name: truth_ratio(log_truth_ratios(right, wrong, name)) for name in ("arithmetic", "geometric")}
    with pytest.raises(ValueError, match="truth ratios are of several variants"):
        model_utility({"a/truth_ratio": ratios["arithmetic"], "b/truth_ratio": ratios["geometric"]})
    for other in (rouge(["a"], ["a"], measure="f1"), published_rouge(["a"], ["a"])):
        with pytest.raises(ValueError, match="a/rouge is ROUGE-L .*; a term of model_utility is ROUGE-L recall"):
            model_utility({"a/rouge": other})
    assert model_utility({"a/rouge": rouge(["a"], ["a"]), "a/truth_ratio": truth_ratio([-0.5])}).value > 0


def test_rwku_says_that_its_rouge_is_another():
    pair = ["the stephen king"], ["Stephen King"]
    assert published_rouge(*pair).variant != rouge(*pair).variant
    assert published_rouge(*pair).value != rouge(*pair).value
    assert "variant" in published_rouge.__doc__
    assert "rouge_score" in audit_rwku.__doc__


# Half precision


def test_likeness_and_distances_of_half_precision_are_those_of_float64():
    rng = np.random.default_rng(0)
    x, y = (300 * rng.normal(size=(50, 8)) + 1000).astype(np.float16), rng.normal(size=(50, 8)).astype(np.float16)
    for measure in (linear_cka, lambda a, b: float(row_mse(a, b).mean()), mean_shift, covariance_distance):
        expected = measure(x.astype(np.float64), y.astype(np.float64))
        assert np.isfinite(expected)
        assert measure(x, y) == pytest.approx(expected, rel=1e-9)
    import torch

    halves = [torch.tensor(part, dtype=torch.float32).to(torch.bfloat16) for part in (x, y)]
    assert linear_cka(*halves) == pytest.approx(linear_cka(*(half.double().numpy() for half in halves)))


def test_values_know_their_definition_in_parts_too():
    ratios = log_truth_ratios([-1.0, -2.0, -1.5], [[-3.0], [-2.5], [-1.0]], "prob_mean")
    for part in (ratios[:2], ratios + ratios, ratios.copy()):
        assert truth_ratio(part).variant == "prob_mean"
    assert isinstance(ratios[0], float)
    with pytest.raises(ValueError, match="'prob_mean' and 'arithmetic' do not go into one list"):
        ratios + log_truth_ratios([-1.0], [[-3.0]])


def test_privleak_takes_any_number_and_nothing_else():
    expected = privleak([-1.0, -2.0], [-1.5, -3.0], 0.5).value
    assert privleak([-1.0, -2.0], [-1.5, -3.0], np.float32(0.5)).value == expected
    for wrong in (True, holdout_auc([-1.0], [-2.0])):
        with pytest.raises(ValueError, match="retrained="):
            privleak([-1.0, -2.0], [-1.5, -3.0], wrong)
