# SPDX-License-Identifier: Apache-2.0
"""The metrics behind the `evaluate` interface."""

import math

import pytest

from hf_unlearn.audit import load, log_truth_ratios, truth_ratio


evaluate = pytest.importorskip("evaluate")

RIGHT, WRONG = [-0.2, -1.5], [[-1.0, -2.0], [-1.0, -1.0, -1.2]]


def test_text_metrics_combine():
    both = evaluate.combine([load("rouge"), load("exact_match")])
    inputs = {"predictions": ["In Oslo.", "by the sea"], "references": ["in Oslo.", "near the sea"]}
    result = both.compute(**inputs)
    assert result["rouge"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["exact_match"] == 0.5
    assert result["exact_match_n"] == 2
    assert result["exact_match_interval"][0] == pytest.approx(0.01258, abs=1e-4)
    for prediction, reference in zip(*inputs.values(), strict=True):
        both.add(prediction=prediction, reference=reference)
    assert both.compute() == result


def test_batches_add_up():
    metric = load("exact_match")
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=["a", "b"], references=["a", "a"])
    metric.add_batch(predictions=["a"], references=["a"])
    assert metric.compute()["exact_match"] == pytest.approx(2 / 3)
    # A second use begins anew.
    assert metric.compute(predictions=["a"], references=["b"])["exact_match"] == 0.0


def test_token_metrics_combine():
    both = evaluate.combine([load("exact_memorization"), load("extraction_strength")])
    result = both.compute(predictions=[[9, 1, 2, 3], [4, 9]], references=[[-100, 9, 2, 3], [4, 5]])
    assert result["exact_memorization"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["extraction_strength"] == pytest.approx((2 / 3 + 0) / 2)
    with pytest.raises(ValueError, match="Item 0 has 1 predicted and 2 right tokens"):
        both.compute(predictions=[[1]], references=[[1, 2]])


def test_log_probability_metrics_combine():
    both = evaluate.combine([load("probability"), load("truth_ratio")])
    result = both.compute(predictions=RIGHT, references=WRONG)
    assert result["probability"] == pytest.approx((math.exp(-0.2) + math.exp(-1.5)) / 2)
    assert result["truth_ratio"] == pytest.approx(truth_ratio(log_truth_ratios(RIGHT, WRONG)).value)
    both.add_batch(predictions=RIGHT, references=WRONG)
    assert both.compute() == result


@pytest.mark.parametrize("variant", ["arithmetic", "geometric", "prob_mean"])
def test_variants_and_roles(variant):
    result = load("truth_ratio", variant).compute(predictions=RIGHT, references=WRONG, role="forget")
    expected = truth_ratio(log_truth_ratios(RIGHT, WRONG, variant), variant, "forget")
    assert result["truth_ratio"] == pytest.approx(expected.value)


def test_normalized_probability():
    result = load("probability", "normalized").compute(predictions=[-1.0], references=[[-1.0, -1.0, -1.0]])
    assert result["probability"] == pytest.approx(0.25)
    assert load("probability").compute(predictions=[-1.0])["probability"] == pytest.approx(math.exp(-1))


def test_undefined_items_are_counted():
    result = load("probability").compute(predictions=[-1.0, None])
    assert (result["probability_n"], result["probability_undefined"]) == (1, 1)
    result = load("truth_ratio").compute(predictions=[-1.0], references=[[]])
    assert (result["truth_ratio"], result["truth_ratio_undefined"]) == (None, 1)


def test_aggregates():
    result = load("forget_quality").compute(predictions=[0.1, 0.2, 0.3, 0.9], references=[0.5, 0.6, 0.7, 0.8])
    assert 0 < result["forget_quality"] < 1
    assert load("model_utility").compute(predictions=[0.5, 1.0])["model_utility"] == pytest.approx(2 / 3)


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown metric 'bleu'. Allowed: probability, rouge, truth_ratio"):
        load("bleu")
    with pytest.raises(ValueError, match="Unknown variant 'mean' of TruthRatio. Allowed: arithmetic"):
        load("truth_ratio", "mean")
    with pytest.raises(ValueError, match="Rouge. Allowed: none"):
        load("rouge", "f1")


def test_on_disk_as_several_processes_would():
    metric = load("exact_match", keep_in_memory=False, experiment_id="test_audit_evaluate")
    metric.add_batch(predictions=["a"], references=["a"])
    assert metric.compute()["exact_match"] == 1.0
