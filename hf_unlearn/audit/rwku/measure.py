# SPDX-License-Identifier: Apache-2.0
"""The audit of a model on RWKU (Jin et al. 2024, https://huggingface.co/papers/2406.10890)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from ...data.qa import QAFormat
from ...data.rwku.files import FLUENCY, MEMBERS, PROBES
from ...data.rwku.prompts import encode_turn, fluency_turn, probe_turn
from ..generation import generate_answers
from ..model_checks import check_language_model
from ..overlap import rouge
from ..prompts import answer_prompts
from ..result import MetricResult, mean_result
from ..sets import AuditSet, read_sets
from ..store import Audit
from ..suites import Suite, get_suite
from .fluency import fluency
from .members import membership
from .overlap import published_rouge


PROBE_TOKENS, FLUENCY_TOKENS = 30, 256
# Probes in the whole benchmark: by them the published Align-then-Unlearn code weights the subsets of one target.
PROBES_IN_ALL = {"forget_fb": 3268, "forget_qa": 2879, "forget_aa": 6984, "neighbor_fb": 5846, "neighbor_qa": 5533}


def audit_rwku(
    model: torch.nn.Module,
    tokenizer: Any,
    sets: Mapping[str, Any],
    *,
    suite: Suite | str | None = "rwku",
    qa: QAFormat | None = None,
    max_items: int | None = None,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    generation_batch_size: int = 32,
    num_answers: int = 8,
    prompts: Sequence[str] = (),
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = True,
) -> Audit:
    """Measures what a model knows of RWKU's targets, of their neighbours, and how it writes.

    `rouge` is ROUGE-L recall as published, `rouge_score` the one of the other benchmarks (stemmed, no upper case), of
    every set of probes, of each type of attack (`forget_aa_<type>`), and of all forget (`forget`) and all neighbour
    probes (`retain`), each probe counted alike. `forget_members` and `retain_members` get [`membership`]'s scores,
    `fluency` its [`entropy`][fluency].

    A generation that fails raises: an answer that is missing would count as one that is forgotten.

    Args:
        model, tokenizer:
            As in [`~hf_unlearn.audit.audit_model`].
        sets (`Mapping[str, datasets.Dataset]`):
            Those of [`~hf_unlearn.data.load_rwku.Rwku`], or some of them.
        suite (`Suite` or `str`):
            The sets' roles.
        qa ([`~hf_unlearn.data.qa.QAFormat`], *optional*):
            Chat template or not, and its arguments. The wording is RWKU's.
        max_items (`int`, *optional*):
            At most so many rows a set, chosen by `seed`.
        max_new_tokens (`int`):
            Of the answers to `prompts`; probes are answered in 30 tokens and instructions in 256, as published.
        batch_size, generation_batch_size, num_answers, prompts, seed, accelerator, progress:
            As in [`~hf_unlearn.audit.audit_model`].

    Returns:
        `Audit`: its `items` hold the generated answer of every row.

    Raises:
        `ValueError`: before the model runs, for sets that RWKU does not have, or unusable rows.
    """
    check_language_model(model)
    suite, qa = get_suite(suite), (qa or QAFormat()).settled(tokenizer)
    unknown = [name for name in sets if name not in {**PROBES, **MEMBERS, **FLUENCY}]
    if unknown or not sets:
        raise ValueError(f"RWKU has no sets {unknown}. Give some of {', '.join([*PROBES, *MEMBERS, *FLUENCY])}.")
    chosen = {data.name: data for data in read_sets(sets, suite.roles_of(sets), max_items, seed)}
    shared = {"accelerator": accelerator, "progress": progress}
    generating = {"batch_size": generation_batch_size, **shared}
    audit = Audit({}, [], {}, _settings(suite, chosen, qa, prompts, max_new_tokens))
    audit.answers += answer_prompts(model, tokenizer, prompts, qa, max_new_tokens=max_new_tokens, **generating)

    probes = [data for name, data in chosen.items() if name in PROBES]
    _add_probes(audit, probes, _answers(model, tokenizer, probes, qa, generating), num_answers)
    for name in MEMBERS:
        if name in chosen:
            texts, role = [row["text"] for row in chosen[name].rows], chosen[name].role
            options = {"batch_size": batch_size, "desc": f"Scoring {name}", **shared}
            found = membership(model, tokenizer, texts, role=role, **options)
            audit.metrics.update({f"{name}/{metric}": result for metric, result in found.items()})
    for name in FLUENCY:
        if name in chosen:
            asked = [encode_turn(fluency_turn(row["text"]), tokenizer, qa) for row in chosen[name].rows]
            options = {"max_new_tokens": FLUENCY_TOKENS, "desc": "Answering instructions", **generating}
            texts = generate_answers(model, tokenizer, asked, **options)
            audit.metrics[f"{name}/entropy"] = fluency(texts)
            audit.items[name] = {"index": chosen[name].index, "generated": texts}
    return audit


def _answers(model, tokenizer, probes: list[AuditSet], qa: QAFormat, options: dict) -> dict[str, list[str]]:
    """Answers to the probes of all sets, generated in one pass."""
    turns = [probe_turn(data.name, row["question"], row.get("type")) for data in probes for row in data.rows]
    asked = [encode_turn(turn, tokenizer, qa) for turn in turns]
    texts = iter(
        generate_answers(model, tokenizer, asked, max_new_tokens=PROBE_TOKENS, desc="Answering probes", **options)
    )
    return {data.name: [next(texts) for _ in data.rows] for data in probes}


def _add_probes(audit: Audit, probes: list[AuditSet], answers: dict[str, list[str]], num_answers: int) -> None:
    """Metrics of the probes by set, by attack and of each role, with the items and the answers that a report shows."""
    for data in probes:
        texts = answers[data.name]
        audit.metrics.update(_overlap(data.name, data, texts))
        audit.metrics.update(_by_attack(data, texts))
        audit.items[data.name] = {"index": data.index, "generated": texts}
        for i in np.linspace(0, len(texts) - 1, min(num_answers, len(texts))).round().astype(int).tolist():
            row = data.rows[i]
            shown = {"question": row["question"], "expected": row["answer"], "answer": texts[i]}
            audit.answers.append({"set": data.name, **shown})
    joined = {}
    for role in dict.fromkeys(data.role for data in probes):
        names = [data.name for data in probes if data.role == role]
        joined |= {f"{role}/{metric}": _joined(audit.metrics, names, metric) for metric in ("rouge", "rouge_score")}
    audit.metrics = joined | audit.metrics


def _overlap(name: str, data: AuditSet, texts: Sequence[str | None]) -> dict[str, MetricResult]:
    expected = [row["answer"] for row in data.rows]
    found = {
        "rouge": published_rouge(texts, expected, data.role),
        "rouge_score": replace(rouge(texts, expected, data.role), name="rouge_score"),
    }
    return {f"{name}/{metric}": result for metric, result in found.items()}


def _by_attack(data: AuditSet, texts: list[str]) -> dict[str, MetricResult]:
    """The metrics of each type of attack; RWKU's code joins them."""
    found = {}
    for kind in dict.fromkeys(row.get("type") for row in data.rows) if data.name == "forget_aa" else ():
        chosen = [i for i, row in enumerate(data.rows) if row.get("type") == kind]
        part = replace(data, rows=[data.rows[i] for i in chosen], index=[data.index[i] for i in chosen])
        if kind:
            found |= _overlap(f"forget_aa_{kind.replace(' ', '_')}", part, [texts[i] for i in chosen])
    return found


def _joined(metrics: dict[str, MetricResult], names: list[str], metric: str) -> MetricResult:
    """A metric over the probes of several sets, each counted alike."""
    parts = {name: metrics[f"{name}/{metric}"] for name in names}
    first = next(iter(parts.values()))
    joined = mean_result(
        metric,
        [value for part in parts.values() for value in part.per_item],
        first.direction,
        variant=f"{first.variant}; all of {', '.join(names)}",
    )
    if any(part.value is None for part in parts.values()):
        return joined
    total = sum(PROBES_IN_ALL[name] for name in names)
    weighted = sum(PROBES_IN_ALL[name] * part.value for name, part in parts.items()) / total
    return replace(joined, details={"weighted_by_probes_of_the_benchmark": weighted})


def _settings(suite: Suite, chosen: dict[str, AuditSet], qa: QAFormat, prompts, max_new_tokens: int) -> dict:
    about = {
        name: {"role": data.role, "n": len(data.rows), "wrong_answers": False, "fingerprint": data.fingerprint}
        for name, data in chosen.items()
    }
    asked = {"prompts": list(prompts), "max_new_tokens": max_new_tokens} if prompts else {}
    return {"suite": suite.name, "qa": asdict(qa), **asked, "sets": about}
