# SPDX-License-Identifier: Apache-2.0
"""The metrics as `evaluate.Metric`s that need no Hub. Importing this module imports `evaluate`, which is slow.

As in `evaluate` itself, metrics combine (`evaluate.combine`) if they read the same inputs:

| metrics | `predictions` | `references` |
|---|---|---|
| `rouge`, `exact_match` | generated answers | expected answers |
| `exact_memorization`, `extraction_strength` | most likely token ids | token ids, -100 where not scored |
| `probability`, `truth_ratio` | mean log-probability of the right answer | mean log-probabilities of wrong answers |
| `forget_quality` | truth ratios of the model | truth ratios of the retrained model |
| `model_utility` | its terms | |
"""

from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from . import ratios
from .memorization import exact_memorization, extraction_strength, probability
from .overlap import exact_match, rouge
from .result import MetricResult
from .utility import model_utility


TEXTS = {"predictions": Value("string"), "references": Value("string")}
TOKENS = {"predictions": Sequence(Value("int64")), "references": Sequence(Value("int64"))}
LOGPS = {"predictions": Value("float64"), "references": Sequence(Value("float64"))}
NUMBERS = {"predictions": Value("float64"), "references": Value("float64")}
TERM_VALUES = {"predictions": Value("float64")}


class AuditMetric(evaluate.Metric):
    """A metric of the audit behind the `evaluate` interface.

    `compute` returns `{name: value, name_interval: [low, high] or None, name_n: items, name_undefined: items}`.

    Args:
        variant (`str`, *optional*):
            One of the metric's `variants`; the first is the default.
        kwargs:
            Those of `evaluate.Metric`. Inputs are kept in memory unless several processes share them.
    """

    inputs: ClassVar[dict[str, Any]] = {}
    variants: tuple[str, ...] = ()
    about = ""

    def __init__(self, variant: str | None = None, **kwargs):
        if variant is not None and variant not in self.variants:
            allowed = ", ".join(self.variants) or "none, it has only one form"
            raise ValueError(f"Unknown variant {variant!r} of {type(self).__name__}. Allowed: {allowed}.")
        self.variant = variant or (self.variants[0] if self.variants else None)
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(config_name=self.variant, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about, citation="", inputs_description=self.about, features=Features(self.inputs)
        )

    def _compute(self, **inputs) -> dict[str, Any]:
        result = self.measure(**inputs)
        interval = None if result.interval is None else list(result.interval)
        return {
            result.name: result.value,
            f"{result.name}_interval": interval,
            f"{result.name}_n": result.n,
            f"{result.name}_undefined": result.undefined,
        }

    def measure(self, **inputs) -> MetricResult:
        """The result for the collected inputs."""
        raise NotImplementedError


class Rouge(AuditMetric):
    inputs = TEXTS
    about = "ROUGE-L recall of generated answers (`predictions`) against expected ones (`references`)."

    def measure(self, predictions, references):
        return rouge(predictions, references)


class ExactMatch(AuditMetric):
    inputs = TEXTS
    about = "Share of `predictions` equal to their `references` but for upper case and white space."

    def measure(self, predictions, references):
        return exact_match(predictions, references)


class ExactMemorization(AuditMetric):
    inputs = TOKENS
    about = "Share of tokens whose most likely id (`predictions`) is the right one (`references`; -100 not scored)."

    def measure(self, predictions, references):
        return exact_memorization(_correct(predictions, references))


class ExtractionStrength(AuditMetric):
    inputs = TOKENS
    about = "1 - k/n, k the shortest prefix after which all most likely ids (`predictions`) are right (`references`)."

    def measure(self, predictions, references):
        return extraction_strength(_correct(predictions, references))


class Probability(AuditMetric):
    inputs = LOGPS
    variants = ("plain", "normalized")
    about = (
        "exp of the mean log-probability a token of the right answer (`predictions`); variant 'normalized' divides by "
        "the sum with the wrong answers (`references`, read only by that variant)."
    )

    def _info(self):
        info = super()._info()
        if self.variant == "plain":
            info.features = Features({"predictions": self.inputs["predictions"]})
        return info

    def measure(self, predictions, references=None):
        return probability(_items(predictions), None if references is None else _nested(references))


class TruthRatio(AuditMetric):
    inputs = LOGPS
    variants = ratios.VARIANTS
    about = (
        "Truth score, from the mean log-probabilities a token of the right (`predictions`) and wrong (`references`) "
        "answers. `role='forget'`: mean of min(R, 1/R); `role='retain'` (default): mean of max(0, 1 - R)."
    )

    def _compute(self, predictions, references, role="retain"):
        self.role = role
        return super()._compute(predictions=predictions, references=references)

    def measure(self, predictions, references):
        log_ratios = ratios.log_truth_ratios(_items(predictions), _nested(references), self.variant)
        return ratios.truth_ratio(log_ratios, self.variant, self.role)


class ForgetQuality(AuditMetric):
    inputs = NUMBERS
    about = "p-value of the KS test: truth ratios of a model (`predictions`), of the retrained one (`references`)."

    def measure(self, predictions, references):
        return ratios.forget_quality(_items(predictions), _items(references))


class ModelUtility(AuditMetric):
    inputs = TERM_VALUES
    about = "Harmonic mean of `predictions`: probability, ROUGE and truth score of the sets to be kept."

    def measure(self, predictions):
        terms = {f"term_{i}/value": MetricResult("", v, 1, "higher", [v]) for i, v in enumerate(_items(predictions))}
        return model_utility(terms)


METRICS = {
    "probability": Probability,
    "rouge": Rouge,
    "truth_ratio": TruthRatio,
    "exact_match": ExactMatch,
    "exact_memorization": ExactMemorization,
    "extraction_strength": ExtractionStrength,
    "forget_quality": ForgetQuality,
    "model_utility": ModelUtility,
}


def load(name: str, variant: str | None = None, **kwargs) -> AuditMetric:
    """An audit metric as an `evaluate.Metric`, without the Hub.

    Args:
        name (`str`):
            `"probability"`, `"rouge"`, `"truth_ratio"`, `"exact_match"`, `"exact_memorization"`,
            `"extraction_strength"`, `"forget_quality"` or `"model_utility"`.
        variant (`str`, *optional*):
            For `"truth_ratio"`: `"arithmetic"` (default), `"geometric"`, `"prob_mean"`; for `"probability"`:
            `"plain"` (default), `"normalized"`.
        kwargs:
            Passed to `evaluate.Metric`.

    Returns:
        `evaluate.Metric`: with `compute`, `add` and `add_batch`; combines with metrics of the same inputs.

    Raises:
        `ValueError`: for an unknown name or variant.

    Example:

    ```python
    >>> import evaluate
    >>> from hf_unlearn.audit import load
    >>> both = evaluate.combine([load("rouge"), load("exact_match")])
    >>> both.compute(predictions=["In Oslo."], references=["In Oslo."])["exact_match"]
    1.0
    ```
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}. Allowed: {', '.join(METRICS)}.")
    return METRICS[name](variant, **kwargs)


def _correct(predictions, references) -> list[np.ndarray]:
    rows = []
    for i, (predicted, right) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(right):
            raise ValueError(f"Item {i} has {len(predicted)} predicted and {len(right)} right tokens; align them.")
        right = np.asarray(right)
        rows.append((np.asarray(predicted) == right)[right != -100])
    return rows


def _items(column) -> list[float | None]:
    return [None if value is None or np.isnan(value) else float(value) for value in column]


def _nested(column) -> list[list[float | None]]:
    return [_items(values) for values in column]
