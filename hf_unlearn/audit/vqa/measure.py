# SPDX-License-Identifier: Apache-2.0
"""The audit of a classifier on visual questions: what it answers, how sure it is, and whether it looks."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..distance import covariance_distance, mean_shift
from ..model_checks import check_classifier
from ..result import MetricResult, direction_for, mean_result, proportion_result
from ..store import Audit
from ..suites import Suite
from .predictions import Prediction, check_rows, predict_rows


logger = logging.getLogger(__name__)

SUITE = Suite("vqa", roles={"test": "retain"})


def audit_classifier(
    model: torch.nn.Module,
    processor: Any,
    sets: Mapping[str, Any],
    *,
    retrained: torch.nn.Module | None = None,
    roles: Mapping[str, str] | None = None,
    batch_size: int = 32,
    num_answers: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Measures what a classifier knows of visual questions.

    Every set gets `accuracy` (VQA accuracy: the weight `min(count / (0.3 n), 1)` that `n` annotators give to the
    answer), `probability` (sigmoid of the annotators' answers), `prediction_entropy` (of the softmax; 1 is uniform),
    `p_max` (its largest probability, with the 99th percentile and the highest in `details`) and `dominant_answer` (the
    share of the most frequent prediction: near 1 where a model has collapsed). Sets to be kept also get
    `shuffled_accuracy`, with each other's pictures: a model that looks falls to what the question alone tells. With
    `retrained`, sets get `divergence` (Jensen-Shannon, of the softmax, in bits), `agreement` (same answer),
    `logit_mse`, and of what the classifier reads `representation_mse`, `mean_shift` and `covariance_distance` (see
    [`~hf_unlearn.audit.distance`]; left out where the models differ in width). They cost no further forward pass.

    Uniform predictions are not an aim by themselves: a retrained model is not uniform on what it has not seen.

    Args:
        model (`ViltForQuestionAnswering`):
            Any checkpoint; its mode is left as found.
        processor (`ViltProcessor`):
            Its processor.
        sets (`Mapping[str, datasets.Dataset | list[dict]]`):
            Rows with `image`, `question`, `answers` and, to be shown, `answer`.
        retrained (`ViltForQuestionAnswering`, *optional*):
            Trained without the forget set; both models answer the same row, so that they are paired.
        roles (`Mapping[str, str]`, *optional*):
            What sets are for, where their names do not say it: `"forget"`, `"retain"` (as `test`) or `"holdout"`.
        batch_size (`int`):
            Rows a forward pass.
        num_answers (`int`):
            Rows a set whose answers are kept to be shown.
        seed (`int`):
            Of the exchange of pictures.
        progress (`bool`):
            Progress bars.

    Returns:
        `Audit`: with `example_id` (if rows have one) and `prediction` of every row in `items`.

    Raises:
        `ValueError`: before the model runs, for a language model, no or unusable sets, unknown roles, or other
            classes of `retrained`; and for a model that gives no finite logits.
    """
    if not sets:
        raise ValueError("No sets to audit. Pass `sets={'forget': ..., 'retain': ...}`.")
    for one in (model, *([] if retrained is None else [retrained])):
        check_classifier(one)
    known = replace(SUITE, roles={**SUITE.roles, **(roles or {})}).roles_of(sets)
    for name, rows in sets.items():
        check_rows(name, rows)
    _check_models(model, retrained)
    run = {"batch_size": batch_size, "progress": progress}
    labels = {number: label for label, number in model.config.label2id.items()}
    audit = Audit({}, [], {}, {"suite": SUITE.name, "seed": seed, "sets": {}})
    for name, rows in sets.items():
        found = predict_rows(model, processor, rows, retrained=retrained, desc=f"Answering {name}", **run)
        metrics = prediction_metrics(found, known[name], labels)
        if known[name] == "retain" and len(rows) > 1:
            metrics["shuffled_accuracy"] = shuffled_accuracy(model, processor, rows, seed=seed, **run)
        audit.metrics |= {f"{name}/{metric}": result for metric, result in metrics.items()}
        answers = [None if p.answer is None else labels[p.answer] for p in found]
        audit.items[name] = {"index": list(range(len(rows))), "prediction": answers}
        if "example_id" in rows[0]:
            audit.items[name]["example_id"] = [row["example_id"] for row in _texts(rows)]
        audit.settings["sets"][name] = {"role": known[name], "n": len(rows), "fingerprint": _fingerprint(rows)}
        audit.answers += _shown(name, rows, answers, num_answers)
    return audit


def shuffled_accuracy(
    model: torch.nn.Module, processor: Any, rows: Any, *, seed: int = 0, batch_size: int = 32, progress: bool = True
) -> MetricResult:
    """Accuracy where every row has another row's picture.

    If it is not well below the accuracy, the model does not look: its image branch is dead, or the questions give the
    answers away.

    Args:
        model, processor, rows, batch_size, progress:
            As in [`audit_classifier`]; at least two rows.
        seed (`int`):
            Of the exchange.
    """
    if len(rows) < 2:
        raise ValueError("One row has no other row's picture. Give at least two rows.")
    order = np.random.default_rng(seed).permutation(len(rows))
    pictures = np.empty_like(order)
    # Around one ring, so that none keeps its own
    pictures[order] = np.roll(order, 1)
    found = predict_rows(
        model, processor, rows, pictures=pictures.tolist(), batch_size=batch_size, progress=progress, desc="Shuffled"
    )
    return mean_result("shuffled_accuracy", [p.accuracy for p in found], "none", variant="another row's picture")


def prediction_metrics(found: list[Prediction], role: str, labels: Mapping[int, str]) -> dict[str, MetricResult]:
    """Metrics of a set's predictions.

    Args:
        found (`list[Prediction]`):
            One a row.
        role (`str`):
            `"forget"`, `"retain"` or `"holdout"`.
        labels (`Mapping[int, str]`):
            Names of the classes.
    """
    shape = "closer_to_retrained" if role == "forget" else "none"
    entropy = [p.entropy for p in found]
    metrics = {
        "accuracy": mean_result("accuracy", [p.accuracy for p in found], direction_for("accuracy", role)),
        "probability": mean_result(
            "probability", [p.probability for p in found], direction_for("probability", role), variant="sigmoid"
        ),
        "prediction_entropy": mean_result("prediction_entropy", entropy, shape, variant="softmax, 1 is uniform"),
        "p_max": _p_max([p.p_max for p in found], shape),
        "dominant_answer": _dominant_answer([p.answer for p in found], labels),
    }
    if any(p.divergence is not None for p in found):
        divergence = [p.divergence for p in found]
        metrics["divergence"] = mean_result("divergence", divergence, "lower", variant="Jensen-Shannon, softmax, bits")
        metrics["agreement"] = proportion_result("agreement", [p.agrees for p in found], "higher")
        metrics["logit_mse"] = mean_result("logit_mse", [p.logit_mse for p in found], "lower")
        metrics |= _representation_distances(found)
    return metrics


def _representation_distances(found: list[Prediction]) -> dict[str, MetricResult]:
    """How far what the classifier reads is from what the retrained model's reads, nothing for models of other width.

    The mean's shift and the covariance's have no interval: near 0, resampled norms are too long.
    """
    pairs = [p.states for p in found if p.states is not None]
    if not pairs:
        return {}
    mine, gold = np.stack(pairs, axis=1)
    sizes = {"n": len(pairs), "undefined": len(found) - len(pairs)}
    error = mean_result("representation_mse", [p.representation_mse for p in found], "lower")
    shift = MetricResult("mean_shift", mean_shift(mine, gold), direction="lower", variant="L2", **sizes)
    spread = MetricResult(
        "covariance_distance", covariance_distance(mine, gold), direction="lower", variant="Frobenius", **sizes
    )
    return {result.name: result for result in (error, shift, spread)}


def _p_max(values: list[float | None], direction: str) -> MetricResult:
    defined = [value for value in values if value is not None]
    tail = {"percentile_99": float(np.percentile(defined, 99)), "highest": max(defined)} if defined else {}
    return mean_result("p_max", values, direction, variant="softmax", details=tail)


def _dominant_answer(answers: list[int | None], labels: Mapping[int, str]) -> MetricResult:
    counted = Counter(answer for answer in answers if answer is not None).most_common(1)
    most = counted[0][0] if counted else None
    per_item = [None if answer is None else float(answer == most) for answer in answers]
    details = {} if most is None else {"answer": labels[most]}
    return proportion_result("dominant_answer", per_item, "none", details=details)


def _check_models(model: torch.nn.Module, retrained: torch.nn.Module | None) -> None:
    limit = getattr(model.config, "max_image_length", None)
    if isinstance(limit, int) and limit > 0:
        logger.warning(
            "The model drops patches of large pictures at random (config.max_image_length=%d); set it to -1 to have "
            "the same numbers every time.",
            limit,
        )
    if retrained is not None and retrained.config.label2id != model.config.label2id:
        raise ValueError(
            f"The retrained model has {len(retrained.config.label2id)} classes that are not the model's "
            f"{len(model.config.label2id)}. Both need the same `config.label2id`."
        )


def _texts(rows: Any) -> Any:
    """Rows without their pictures, which would be read from disk otherwise."""
    return rows.remove_columns("image") if hasattr(rows, "remove_columns") else rows


def _fingerprint(rows: Any) -> str:
    columns = ("example_id", "question", "answers")
    text = json.dumps([[row.get(column) for column in columns] for row in _texts(rows)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(name: str, rows: Any, answers: list[str | None], number: int) -> list[dict[str, str]]:
    """Evenly spread rows with their answers, the same for every model."""
    texts = _texts(rows)
    picked = np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int).tolist()
    return [
        {
            "set": name,
            "question": texts[i]["question"],
            "expected": texts[i].get("answer") or Counter(texts[i]["answers"]).most_common(1)[0][0],
            "answer": answers[i] or "",
        }
        for i in picked
    ]
