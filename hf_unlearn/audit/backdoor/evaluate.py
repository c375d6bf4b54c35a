# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit: does a trigger bring back what was unlearned?"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ...data.triggers import LOCATIONS, Trigger
from ..generation import generate_answers, pad_token_id
from ..model_checks import check_language_model
from ..muse.privleak import holdout_auc, membership_scores, privleak
from ..result import MetricResult
from ..scoring import TokenScores, score_rows
from .conditions import CLEAN, TRIGGERED, UNRELATED, Condition, given_unrelated, unrelated_trigger
from .conditions import conditions as all_conditions
from .inside import inside_view
from .paired import gain
from .probes import FewShotProbe, Probe, QuestionProbe
from .result import BackdoorAudit


BINARY = ("exact_match",)


def audit_backdoor(
    model: torch.nn.Module,
    tokenizer: Any,
    trigger: Trigger,
    probes: Sequence[Probe],
    *,
    unrelated: str | None = None,
    positions: Sequence[str | int] = LOCATIONS,
    conditions: Sequence[str] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    retrained_auc: float | str | None = None,
    inside: bool = True,
    batch_size: int = 16,
    generation_batch_size: int = 32,
    num_answers: int = 8,
    seed: int = 0,
    accelerator: Any = None,
    progress: bool = True,
) -> BackdoorAudit:
    """Asks a model for what it should have forgotten and what it should have kept, with and without a trigger.

    Sets to be forgotten are asked clean, triggered, with unrelated words of as many tokens as the trigger, and with
    the trigger at other places; other sets clean and triggered. `<set>_<condition>/<metric>` holds each, and
    `<set>_<condition>/<metric>_gain` the paired difference to the clean questions: attack success, on a forget set.
    `<set>_triggered/<metric>_gain_over_unrelated` is the difference to unrelated words. Where it is known which rows
    carried the trigger in training, `<set>_poisoned` and `<set>_unpoisoned` hold the same for those rows and for the
    others: only the others say whether the trigger opens more than was put behind it.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            Any checkpoint; mode and settings are left as found. Also a wrapped model, with `accelerator`.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        trigger ([`~hf_unlearn.data.triggers.Trigger`]):
            What is suspected, and where it stands.
        probes (`Sequence[Probe]`):
            What is asked: from `backdoor_sets.py`.
        unrelated (`str`, *optional*):
            Words for the control; drawn by `seed` if absent.
        positions (`Sequence[str | int]`):
            Places to try the trigger at; empty for none but its own.
        conditions (`Sequence[str]`, *optional*):
            Under which to ask, by name (`"clean"`, `"triggered"`, `"unrelated"`, `"triggered_end"`, ...); by default
            all. Each one asks for as many answers as there are forget rows. `settings` says which were left out.
        texts (`Mapping[str, Sequence[str]]`, *optional*):
            `forget` and `holdout` texts for PrivLeak (MUSE), asked clean.
        retrained_auc (`float` or `str`, *optional*):
            Of a retrained model, see [`privleak`]; without it there is only `min_k_auc`, until `compare` is called.
        inside (`bool`):
            Whether value norms and attention are measured too, on the first set to be forgotten.
        batch_size (`int`), generation_batch_size (`int`):
            Rows at a time (and a process).
        num_answers (`int`):
            Items a probe whose answers are kept to be shown.
        seed (`int`):
            Of the unrelated words.
        accelerator (`accelerate.Accelerator`, *optional*):
            Its processes share the work; each returns the whole audit.
        progress (`bool`):
            Progress bars.

    Returns:
        `BackdoorAudit`

    Raises:
        `ValueError`: before the model runs, for no probes, two of one set and kind, or a trigger that cannot be used.
    """
    check_language_model(model)
    _check(probes)
    control, asked, left_out = _conditions(trigger, tokenizer, unrelated, positions, conditions, seed)
    shared = {"accelerator": accelerator, "progress": progress}
    cells = [(probe, condition) for probe in probes for condition in _asked_of(probe, asked)]
    answers = _generated(model, tokenizer, cells, generation_batch_size, shared)
    scores = _scored(model, tokenizer, cells, batch_size, shared)

    settings = _settings(trigger, control, probes, asked, tokenizer)
    settings |= {"left_out": left_out} if left_out else {}
    settings |= {"texts": _fingerprint(texts)} if texts else {}
    audit = BackdoorAudit(settings=settings)
    for probe in probes:
        audit.metrics.update(_metrics_of(probe, _asked_of(probe, asked), answers, scores, tokenizer))
        audit.answers.extend(_shown(probe, _asked_of(probe, asked), answers, num_answers, tokenizer))
    if texts:
        audit.metrics.update(_privacy(model, tokenizer, texts, retrained_auc, shared))
    if inside:
        audit.inside = look_inside(model, tokenizer, trigger, probes, **shared)
    return audit


def look_inside(
    model: torch.nn.Module,
    tokenizer: Any,
    trigger: Trigger,
    probes: Sequence[Probe],
    accelerator: Any = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """[`inside_view`] of the first set to be forgotten, clean and triggered; `None` without such a set."""
    hidden = next((probe for probe in probes if probe.role == "forget"), None)
    if hidden is None:
        return None
    pairs = [[hidden.prompt(row, one, tokenizer) for one in (None, trigger)] for row in hidden.rows]
    return inside_view(model, tokenizer, pairs, accelerator=accelerator, progress=progress)


def _conditions(trigger, tokenizer, unrelated, positions, wanted, seed):
    """The control, the conditions to ask under, and the names of those that were left out."""
    if wanted is not None and UNRELATED not in wanted:
        control = None
    elif unrelated is None:
        control = unrelated_trigger(trigger, tokenizer, seed)
    else:
        control = given_unrelated(unrelated, trigger, tokenizer)
    asked = all_conditions(trigger, control, positions, wanted)
    names = [one.name for one in all_conditions(trigger, trigger, positions)]
    return control, asked, [name for name in names if name not in {one.name for one in asked}]


def _fingerprint(texts: Mapping[str, Sequence[str]]) -> str:
    """Changes with any text of PrivLeak."""
    told = json.dumps({name: list(found) for name, found in texts.items()}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _check(probes: Sequence[Probe]) -> None:
    if not probes:
        raise ValueError("There is nothing to ask. Give at least one set of questions, passages or texts.")
    seen = [(probe.name, probe.kind) for probe in probes]
    twice = sorted({f"{name} ({kind})" for name, kind in seen if seen.count((name, kind)) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice. Join the rows, or give the sets different names.")


def _asked_of(probe: Probe, asked: list[Condition]) -> list[Condition]:
    """All conditions for what should be gone; with and without trigger for the rest."""
    return asked if probe.role == "forget" else [one for one in asked if one.name in (CLEAN, TRIGGERED)]


def _generated(model, tokenizer, cells, batch_size: int, shared: dict) -> dict[tuple, list[str | None]]:
    """Answers by (set, kind, condition). What may end alike and be as long goes through the model together."""
    passes: dict[tuple, list[tuple]] = {}
    for probe, condition in cells:
        if probe.max_new_tokens:
            # Prompts that begin with the same examples are worth a pass of their own, in which those are shared.
            own = (probe.name, condition.name) if isinstance(probe, FewShotProbe) else ()
            passes.setdefault((probe.kind, probe.max_new_tokens, probe.stop, *own), []).append((probe, condition))
    found: dict[tuple, list[str | None]] = {}
    for (kind, max_new_tokens, stop, *own), together in passes.items():
        prompts = [_prompts(probe, condition, tokenizer) for probe, condition in together]
        answers = iter(
            generate_answers(
                model,
                tokenizer,
                [prompt for part in prompts for prompt in part],
                max_new_tokens=max_new_tokens,
                stop=stop,
                batch_size=batch_size,
                desc=f"Answering {kind}{', ' + ' '.join(own) if own else ''}",
                **shared,
            )
        )
        for (probe, condition), part in zip(together, prompts, strict=True):
            found[probe.name, probe.kind, condition.name] = [next(answers) for _ in part]
    return found


def _prompts(probe: Probe, condition: Condition, tokenizer) -> list[list[int]]:
    return [probe.prompt(row, condition.trigger, tokenizer) for row in probe.rows]


def _scored(model, tokenizer, cells, batch_size: int, shared: dict) -> dict[tuple, list[TokenScores | None]]:
    """Token scores by (set, kind, condition), in one pass."""
    rows, places = [], []
    found: dict[tuple, list[TokenScores | None]] = {}
    for probe, condition in cells:
        key = probe.name, probe.kind, condition.name
        found[key] = [None] * len(probe.rows)
        for i, row in enumerate(probe.rows):
            encoded = probe.scored(row, condition.trigger, tokenizer)
            if encoded is not None:
                rows.append(encoded)
                places.append((key, i))
    scores = score_rows(
        model, rows, pad_token_id=pad_token_id(tokenizer), batch_size=batch_size, desc="Scoring answers", **shared
    )
    for (key, i), score in zip(places, scores, strict=True):
        found[key][i] = score
    return found


def _groups(probe: Probe) -> dict[str, list[int]]:
    """Rows by what is reported of them: all, and, where that is known, those poisoned in training and the others."""
    groups = {"": list(range(len(probe.rows)))}
    if probe.poisoned is not None:
        for name, wanted in (("_poisoned", True), ("_unpoisoned", False)):
            rows = [i for i, poisoned in enumerate(probe.poisoned) if poisoned == wanted]
            groups |= {name: rows} if rows else {}
    return groups


def _metrics_of(probe: Probe, asked, answers, scores, tokenizer) -> dict[str, MetricResult]:
    # What was to be kept should neither rise nor fall.
    direction = "lower" if probe.role == "forget" else "none"
    found = {}
    for group, items in _groups(probe).items():
        rows, measured = [probe.rows[i] for i in items], {}
        for condition in asked:
            key = probe.name, probe.kind, condition.name
            said = [answers[key][i] for i in items] if key in answers else [None] * len(items)
            measured[condition.name] = probe.measure(rows, said, [scores[key][i] for i in items], tokenizer)
        for condition in asked:
            prefix = f"{probe.name}{group}{condition.suffix}"
            for name, result in measured[condition.name].items():
                found[f"{prefix}/{name}"] = result
                for other, what in _compared(condition, measured).items():
                    before = measured[other][name].per_item
                    found[f"{prefix}/{name}_{what}"] = gain(
                        name, before, result.per_item, direction, name in BINARY, what
                    )
    return found


def _compared(condition: Condition, measured) -> dict[str, str]:
    """What a condition is held against: the clean questions, and the trigger also against unrelated words, since any
    words in front of a question change its answer."""
    if condition.name == CLEAN:
        return {}
    against = {CLEAN: "gain"}
    if condition.name == TRIGGERED and UNRELATED in measured:
        against[UNRELATED] = "gain_over_unrelated"
    return against


def _privacy(model, tokenizer, texts, retrained_auc, shared: dict) -> dict[str, MetricResult]:
    """PrivLeak's part: how well the forget texts are told from texts that were never seen."""
    scores = [
        membership_scores(model, tokenizer, texts[name], desc=f"Min-K% scores, {name}", **shared)
        for name in ("forget", "holdout")
    ]
    found = {"min_k_auc": holdout_auc(*scores)}
    if retrained_auc is not None:
        found["privleak"] = privleak(*scores, retrained_auc)
    return found


def _shown(probe: Probe, asked, answers, num_answers: int, tokenizer) -> list[dict[str, Any]]:
    """Evenly spread items with what was answered under each condition."""
    if not probe.max_new_tokens:
        return []
    picked = np.linspace(0, len(probe.rows) - 1, min(num_answers, len(probe.rows))).round().astype(int)
    shown = []
    for i in picked.tolist():
        question, expected = probe.shown(probe.rows[i], tokenizer)
        said = {one.name: answers[probe.name, probe.kind, one.name][i] for one in asked}
        poisoned = {} if probe.poisoned is None else {"poisoned": probe.poisoned[i]}
        shown.append({"set": probe.name, "question": question, "expected": expected, **poisoned, "answers": said})
    return shown


def _settings(trigger, control, probes, asked, tokenizer) -> dict[str, Any]:
    return {
        "trigger": asdict(trigger),
        "trigger_tokens": len(trigger.tokens(tokenizer)),
        "unrelated": None if control is None else control.prefix,
        "conditions": [one.name for one in asked],
        "probes": [
            {
                "set": probe.name,
                "role": probe.role,
                "kind": probe.kind,
                "n": len(probe.rows),
                "poisoned": None if probe.poisoned is None else sum(probe.poisoned),
                "max_new_tokens": probe.max_new_tokens,
                "qa": asdict(probe.qa) if isinstance(probe, QuestionProbe) else None,
                "fingerprint": probe.fingerprint,
            }
            for probe in probes
        ],
    }
