# SPDX-License-Identifier: Apache-2.0
"""What metrics are called, which come first, and how their numbers are written."""

from typing import Any


UNDEFINED = "–"

KEY_METRICS = (
    "forget/exact_match",
    "forget/probability",
    "forget/rouge",
    "forget_paraphrased/exact_match",
    "retain/exact_match",
    "retain/probability",
    # Of classifiers.
    "forget/accuracy",
    "retain/accuracy",
    "test/accuracy",
    "forget/prediction_entropy",
    # RWKU's subsets.
    "forget_fb/rouge",
    "forget_qa/rouge",
    "forget_aa/rouge",
    "neighbor_fb/rouge",
    "neighbor_qa/rouge",
    "model_utility",
    "forget_quality",
)

ARROWS = {"higher": "↑", "lower": "↓", "closer_to_retrained": "≈", "none": ""}
DIRECTION_WORDS = {"higher": "↑ higher", "lower": "↓ lower", "closer_to_retrained": "≈ like retrained", "none": "none"}

LABELS = {
    "probability": "answer probability",
    "rouge": "ROUGE-L recall",
    "forget_quality": "forget quality (p)",
    "rouge_score": "ROUGE-L recall, stemmed",
    "loss": "loss, nats a token",
    "entropy": "n-gram entropy, bits",
    "prediction_entropy": "entropy / log K",
    "p_max": "largest probability",
    "shuffled_accuracy": "accuracy with other rows' pictures",
    "divergence": "divergence from the retrained",
    "agreement": "agreement with the retrained",
    "logit_mse": "logit MSE from the retrained",
    "representation_mse": "representation MSE from the retrained",
    "mean_shift": "shift of the mean representation",
    "covariance_distance": "covariance distance from the retrained",
}

MEANINGS = {
    "exact_match": "share of questions whose generated answer is the expected one",
    "probability": "probability of the expected answer, as a mean per token",
    "rouge": "share of the expected answer's words found in order in the generated one",
    "truth_ratio": "how likely wrong answers are beside the right one",
    "exact_memorization": "share of answer tokens predicted right when the ones before are given",
    "extraction_strength": "share of the answer that follows by itself from its beginning",
    "accuracy": "weight that annotators give to the answer with the largest logit, min(count / (0.3 n), 1)",
    "prediction_entropy": "how uniform predictions are: 1 is uniform",
    "shuffled_accuracy": "accuracy with other rows' pictures: what is known without looking",
    "divergence": "Jensen-Shannon divergence from the retrained model's predictions, row by row, in bits",
    "agreement": "share of rows where the retrained model gives the same answer",
    "logit_mse": "mean squared difference from the retrained model's logits, row by row",
    "representation_mse": "the same of what the classifier reads",
    "mean_shift": "length of the difference between mean representations, the retrained model's and this one's",
    "covariance_distance": "Frobenius norm of the difference between covariances of representations",
    "forget_quality": "p-value of a KS test: truth ratios on the forget set against the retrained model's",
    "model_utility": "harmonic mean of probability, ROUGE and truth ratio where nothing was to be forgotten",
}

PERCENT = {
    "exact_match",
    "probability",
    "rouge",
    "rouge_score",
    "exact_memorization",
    "extraction_strength",
    "accuracy",
    "shuffled_accuracy",
    "agreement",
    "dominant_answer",
}


def metric_of(name: str) -> str:
    """`forget/rouge` -> `rouge`."""
    return name.rsplit("/", 1)[-1]


def set_of(name: str) -> str:
    """`forget_paraphrased/rouge` -> `forget, paraphrased`; an aggregate belongs to no set and gives an empty text."""
    return name.rsplit("/", 1)[0].replace("_", ", ") if "/" in name else ""


def metric_label(name: str) -> str:
    """`forget/rouge` -> `ROUGE-L recall`."""
    return LABELS.get(metric_of(name), metric_of(name).replace("_", " "))


def full_label(name: str) -> str:
    """`forget/rouge` -> `forget: ROUGE-L recall`."""
    return f"{set_of(name)}: {metric_label(name)}" if set_of(name) else metric_label(name)


def is_percent(name: str) -> bool:
    """Whether a metric is a share, shown in percent."""
    return metric_of(name) in PERCENT


def is_p_value(name: str) -> bool:
    """Whether a metric is a p-value, which spans orders of magnitude."""
    return metric_of(name) == "forget_quality"


def unit(name: str) -> str:
    """`%` or nothing."""
    return "%" if is_percent(name) else ""


def scale(name: str) -> float:
    """What a stored value is multiplied with to be shown."""
    return 100.0 if is_percent(name) else 1.0


def percent(share: float) -> str:
    """`0.0167` as `1.7`; never 0 for what is not 0."""
    return "<0.1" if 0 < share < 5e-4 else f"{100 * share:.1f}"


def format_number(name: str, value: float | None) -> str:
    """A value of metric `name` in its unit; a dash where it is undefined, and never 0 for what is not 0, but
    for `remaining`."""
    if value is None:
        return UNDEFINED
    if is_percent(name):
        return percent(value)
    if metric_of(name) == "remaining":
        # A ratio of differences, of which rounding leaves some 1e-17 where there is nothing; 0.0 has no sign.
        return f"{round(value, 3) + 0.0:.3f}"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3f}"
    return f"{value:.1e}"


def format_interval(name: str, metric: dict | None) -> str:
    """`[lo, hi]` in the metric's unit, or an empty text."""
    if metric is None or metric["value"] is None or metric["interval"] is None:
        return ""
    low, high = metric["interval"]
    return f"[{format_number(name, low)}, {format_number(name, high)}]"


def format_metric(name: str, metric: dict | None) -> str:
    """`96.9 % [83.8, 99.9]`, for running text."""
    if metric is None or metric["value"] is None:
        return UNDEFINED
    parts = [format_number(name, metric["value"]), unit(name), format_interval(name, metric)]
    return " ".join(part for part in parts if part)


def metric_names(report: dict) -> list[str]:
    """All metrics of a report: the key ones first, then the others in the order in which the models bring them."""
    found = dict.fromkeys(name for model in report["models"] for name in model["metrics"])
    return [name for name in KEY_METRICS if name in found] + [name for name in found if name not in KEY_METRICS]


def key_metric_names(report: dict) -> list[str]:
    """The key metrics that at least one model has, in their fixed order."""
    return [name for name in metric_names(report) if name in KEY_METRICS]


def direction_of(report: dict, name: str) -> str:
    """The direction that the models give for a metric."""
    return next(model["metrics"][name]["direction"] for model in report["models"] if name in model["metrics"])


def value_of(model: dict | None, name: str) -> float | None:
    """A model's value of a metric; None where the model or the metric is absent or undefined."""
    metric = metric_in(model, name)
    return None if metric is None else metric["value"]


def metric_in(model: dict | None, name: str) -> dict | None:
    """A model's result for a metric; None where the model or the metric is absent."""
    return None if model is None else model["metrics"].get(name)


def first_of_kind(report: dict, kind: str) -> dict | None:
    """The report's target or retrained model, if it has one."""
    return next((model for model in report["models"] if model["kind"] == kind), None)


def of_kind(report: dict, kind: str) -> list[dict[str, Any]]:
    """All models of a kind, in order."""
    return [model for model in report["models"] if model["kind"] == kind]
