# SPDX-License-Identifier: Apache-2.0
"""The audit of a model on question/answer sets: one scoring pass, one generation pass, all metrics."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.formats import tokenizer_of
from ..data.qa import QAFormat
from .generation import generate_answers, pad_token_id
from .memorization import exact_memorization, extraction_strength, probability
from .model_checks import check_language_model
from .overlap import exact_match, rouge
from .prompts import answer_prompts
from .ratios import truth_ratio
from .result import MetricResult
from .scoring import TokenScores, score_rows
from .sets import AuditSet, content_length, read_sets
from .store import Audit, as_audit, comparable_sets, item_log_ratios
from .suites import Suite, get_suite
from .utility import TERMS, model_utility


logger = logging.getLogger(__name__)


def audit_model(
    model: torch.nn.Module,
    tokenizer: Any,
    sets: Mapping[str, Any],
    *,
    retrained: "Audit | dict | str | Path | None" = None,
    suite: Suite | str | None = None,
    roles: Mapping[str, str] | None = None,
    qa: QAFormat | None = None,
    generate: bool = True,
    paraphrased_questions: bool = True,
    max_items: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    generation_batch_size: int = 32,
    num_answers: int = 8,
    prompts: Sequence[str] = (),
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = True,
) -> Audit:
    """Measures what a causal language model knows of the given sets.

    Every set of questions gets `probability`, `exact_memorization`, `extraction_strength`, `truth_ratio` (where rows
    have `perturbed_answer`), and from generated answers `rouge` and `exact_match`; `<set>_paraphrased` holds the
    latter two for `paraphrased_question`. A set of plain `text` gets the first three. `model_utility` joins the sets
    to be kept; `forget_quality` is there only if `retrained` is.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            Any checkpoint; mode and generation settings are left as found. Also a wrapped model, with `accelerator`.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        sets (`Mapping[str, datasets.Dataset | list[dict]]`):
            Rows with TOFU's columns `question`, `answer` and optionally `paraphrased_question`,
            `paraphrased_answer`, `perturbed_answer` (list), or rows with `text`.
        retrained (`Audit`, `dict`, `str` or `Path`, *optional*):
            Audit of the model trained without the forget set, or its saved form.
        suite (`Suite` or `str`, *optional*):
            What the sets are for: `"default"`, `"tofu"`, or your own.
        roles (`Mapping[str, str]`, *optional*):
            Roles that differ from the suite's.
        qa ([`~hf_unlearn.data.qa.QAFormat`], *optional*):
            How a question is put to the model; by default through its chat template if the tokenizer has one.
        generate (`bool`):
            Whether answers are generated; without them there is no `rouge`, `exact_match` and `model_utility`.
        paraphrased_questions (`bool`):
            Whether answers to paraphrased questions are generated too.
        max_items (`int`, *optional*):
            At most so many rows a set, chosen by `seed`.
        max_length (`int`, *optional*):
            Longest scored row in tokens.
        max_new_tokens (`int`):
            Longest generated answer in tokens. ROUGE recall depends on it.
        batch_size (`int`), generation_batch_size (`int`):
            Rows at a time (and a process).
        num_answers (`int`):
            Items a set whose answers are kept to be shown.
        prompts (`Sequence[str]`):
            Answered too, in the form of questions, to be shown; nothing is measured on them.
        seed (`int`):
            Of the choice of rows.
        accelerator (`accelerate.Accelerator`, *optional*):
            Its processes share the work; each returns the whole audit.
        progress (`bool`):
            Progress bars.

    Returns:
        `Audit`

    Raises:
        `ValueError`: before the model runs, for a model that is no causal language model, no sets, an empty set,
            unusable columns, unknown roles or suites, or an audit of the retrained model that is of other items; and
            for a model whose logits are not finite.
    """
    check_language_model(model)
    if not sets:
        raise ValueError("No sets to audit. Pass `sets={'forget': ..., 'retain': ...}`.")
    suite = get_suite(suite)
    suite = replace(suite, roles={**suite.roles, **(roles or {})})
    tokenizer = tokenizer_of(tokenizer)
    qa = (qa or QAFormat()).settled(tokenizer)
    chosen = read_sets(sets, suite.roles_of(sets), max_items, seed)
    asked = {"prompts": list(prompts)} if prompts else {}
    settings = _settings(suite, chosen, qa=asdict(qa), max_length=max_length, max_new_tokens=max_new_tokens, **asked)
    if retrained is not None:
        retrained = as_audit(retrained)
        comparable_sets(settings, retrained)

    shared = {"accelerator": accelerator, "progress": progress}
    rows = _tagged(chosen, lambda data: data.scored_rows(tokenizer, qa, max_length))
    found = score_rows(
        model,
        list(rows.values()),
        pad_token_id=pad_token_id(tokenizer),
        batch_size=batch_size,
        desc="Scoring answers",
        **shared,
    )
    scores = _by_set(chosen, rows, found)
    content = _by_set(chosen, rows, [content_length(row, tokenizer) for row in rows.values()])
    texts = _by_set(chosen, {}, [])
    if generate:
        questions = _tagged(chosen, lambda data: data.prompts(tokenizer, qa, paraphrased_questions))
        found = generate_answers(
            model,
            tokenizer,
            list(questions.values()),
            max_new_tokens=max_new_tokens,
            batch_size=generation_batch_size,
            desc="Generating answers",
            **shared,
        )
        texts = _by_set(chosen, questions, found)

    options = {"max_new_tokens": max_new_tokens, "batch_size": generation_batch_size, **shared}
    own = answer_prompts(model, tokenizer, prompts if generate else (), qa, **options)
    audit = Audit({}, own, {data.name: _items(data, scores[data.name]) for data in chosen}, settings)
    for data in chosen:
        name = data.name
        audit.metrics.update(_score_metrics(data, suite, scores[name], content[name], audit.items[name]))
        audit.metrics.update(_text_metrics(data, texts[name]))
        audit.answers.extend(_shown(data, texts[name], num_answers))
    audit.metrics.update(_utility(chosen, suite, audit.metrics))
    if retrained is not None:
        audit.compare(retrained)
    return audit


def _settings(suite: Suite, chosen: list[AuditSet], **options: Any) -> dict[str, Any]:
    about = {
        data.name: {
            "role": data.role,
            "n": len(data.rows),
            "wrong_answers": data.has("perturbed_answer"),
            "fingerprint": data.fingerprint,
        }
        for data in chosen
    }
    return {"suite": suite.name, "truth_ratio": suite.truth_ratio, **options, "sets": about}


def _tagged(chosen: list[AuditSet], inputs: Callable[[AuditSet], dict[tuple, Any]]) -> dict[tuple, Any]:
    """The inputs of all sets in one dict, each key led by its set's name: what goes through the model in one pass."""
    return {(data.name, *key): value for data in chosen for key, value in inputs(data).items()}


def _by_set(chosen: list[AuditSet], keys: Iterable[tuple], values: Iterable[Any]) -> dict[str, dict[tuple, Any]]:
    """The way back from [`_tagged`]: one value a key, sorted into sets."""
    found: dict[str, dict[tuple, Any]] = {data.name: {} for data in chosen}
    for (name, *key), value in zip(keys, values, strict=True):
        found[name][tuple(key)] = value
    return found


def _items(data: AuditSet, scores: dict[tuple, TokenScores]) -> dict[str, list]:
    answers = [scores["answer", i, 0] for i in range(len(data.rows))]
    logps = {key: score.mean_logp for key, score in scores.items()}
    items = {
        "index": data.index,
        "tokens": [score.n for score in answers],
        "logp": [score.mean_logp for score in answers],
    }
    if data.has("paraphrased_answer"):
        items["paraphrased_logp"] = [logps.get(("paraphrased", i, 0)) for i in range(len(data.rows))]
    if data.has("perturbed_answer"):
        items["perturbed_logps"] = [
            [logps["perturbed", i, j] for j in range(len(row.get("perturbed_answer") or ()))]
            for i, row in enumerate(data.rows)
        ]
    return items


def _score_metrics(data, suite, scores, content, items) -> dict[str, MetricResult]:
    """Metrics of the scoring pass."""
    answers = [scores["answer", i, 0] for i in range(len(data.rows))]
    # A diverged model's first choice among NaNs means nothing.
    correct = [
        () if score.mean_logp is None else score.correct[: content["answer", i, 0]] for i, score in enumerate(answers)
    ]
    wrong = items.get("perturbed_logps") if data.name in suite.normalized else None
    found = {
        "probability": probability(items["logp"], wrong, data.role),
        "exact_memorization": exact_memorization(correct, data.role),
        "extraction_strength": extraction_strength(correct, data.role),
    }
    if "perturbed_logps" in items:
        ratios = item_log_ratios(items, suite.truth_ratio)
        found["truth_ratio"] = truth_ratio(ratios, suite.truth_ratio, data.role)
    return {f"{data.name}/{name}": result for name, result in found.items()}


def _text_metrics(data: AuditSet, texts: dict[tuple, str]) -> dict[str, MetricResult]:
    """Metrics of the generated answers."""
    found = {}
    for column, name in (("question", data.name), ("paraphrased_question", f"{data.name}_paraphrased")):
        predictions = [texts.get((column, i)) for i in range(len(data.rows))]
        if not any(text is not None for text in predictions):
            continue
        references = [row["answer"] for row in data.rows]
        found[f"{name}/rouge"] = rouge(predictions, references, data.role)
        found[f"{name}/exact_match"] = exact_match(predictions, references, data.role)
    return found


def _utility(chosen: list[AuditSet], suite: Suite, metrics: dict[str, MetricResult]) -> dict[str, MetricResult]:
    kept = [data.name for data in chosen if data.role == "retain" and data.is_qa]
    names = [name for name in kept if suite.utility is None or name in suite.utility]
    # Without generated answers a third of every set's terms is missing, and the number would be another one.
    if not any(f"{name}/rouge" in metrics for name in names):
        return {}
    keys = [f"{name}/{term}" for name in names for term in TERMS]
    missing = [key for key in keys if key not in metrics]
    if missing:
        logger.warning("model_utility is computed without %s: rows lack `perturbed_answer`.", ", ".join(missing))
    return {"model_utility": model_utility({key: metrics[key] for key in keys if key in metrics})}


def _shown(data: AuditSet, texts: dict[tuple, str], num_answers: int) -> list[dict[str, str]]:
    """Evenly spread items with their answers, the same for every model."""
    if ("question", 0) not in texts:
        return []
    picked = np.linspace(0, len(data.rows) - 1, min(num_answers, len(data.rows))).round().astype(int)
    return [
        {
            "set": data.name,
            "question": data.rows[i]["question"],
            "expected": data.rows[i]["answer"],
            "answer": texts["question", i],
        }
        for i in picked.tolist()
    ]
