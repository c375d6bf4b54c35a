# SPDX-License-Identifier: Apache-2.0
"""`evaluate_privacy`: can anyone tell the forget rows from rows that the model never saw?"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..result import MetricResult, finite
from .attack import BaseAttack
from .attacks import ReferenceAttack
from .cache import SignalCache, digest
from .checks import MIN_ROWS, as_rows, check_disjoint, check_heads
from .choose_subject import as_subject
from .fitted import ScrubAttack
from .lira import lira_attacks
from .names import check_attack_names, default_attacks, named_attacks
from .rates import (
    DEFAULT_FPRS,
    TAILS,
    auc_result,
    check_fprs,
    fpr_name,
    roc_tpr,
    split_nonmembers,
    tail_scores,
    tpr_at_fpr,
    tpr_at_zero_fp,
)
from .representations import picture, reads_representations
from .result import Privacy
from .shadows import Shadows
from .subjects import Subject
from .worst import worst_case


logger = logging.getLogger(__name__)

# What a tail adds to a metric's name.
ENDINGS = {"upper": "", "lower": "/lower", "both": "/both"}


def evaluate_privacy(
    model: Any,
    forget: Any,
    *,
    retain: Any = None,
    nonmember_data: Any = None,
    attacks: Sequence[str | BaseAttack] | None = None,
    fprs: Sequence[float] = DEFAULT_FPRS,
    retrained: Any = None,
    reference_model: Any = None,
    shadows: Shadows | None = None,
    calibration_share: float = 0.5,
    seed: int = 0,
    cache_dir: Any = None,
    progress: bool = True,
    **subject_kwargs: Any,
) -> Privacy:
    """Puts a model to membership-inference attacks.

    Members are the forget rows. One part of the non-members sets each threshold, the other counts the false positive
    rate that it achieves; an attack's direction is fixed in advance and both tails are reported.

    Args:
        model (`torch.nn.Module` or [`Subject`]):
            Any checkpoint: a causal language model, or a classifier that gives logits `[B, C]`.
        forget (`datasets.Dataset` or `list[dict]`):
            The members.
        retain (`datasets.Dataset` or `list[dict]`, *optional*):
            Known members. None may stand among the non-members; and if an attack does not find even these
            (`<attack>/retain_auc`), it says nothing about the forget rows either.
        nonmember_data (`datasets.Dataset` or `list[dict]`):
            Rows like the forget rows that no model was trained on. 1 / fpr of them are needed in the calibrating part
            to resolve a rate.
        attacks (`Sequence`, *optional*):
            Names (`loss`, `confidence`, `entropy`, `margin`, `min-k`, `min-k++`, `zlib`, `scrub`, `reference`, `lira`;
            `probe`, `knn`, `centroid`, `features`, `neural`) and [`BaseAttack`]s. By default those before the
            semicolon for which there is what they need.
        fprs (`Sequence[float]`):
            False positive rates, in (0, 1); no two that `fpr_name` calls the same.
        retrained (`torch.nn.Module`, [`Subject`] or [`Privacy`], *optional*):
            The model trained without the forget rows, or its result on the same rows.
        reference_model (`torch.nn.Module` or [`Subject`], *optional*):
            For `reference`.
        shadows ([`Shadows`], *optional*):
            For `lira`; of [`train_shadows`]. Must know all forget rows and non-members.
        calibration_share (`float`):
            Of the non-members, for thresholds.
        seed (`int`):
            Of splits, folds, permutations and the rows in the picture of representations.
        cache_dir (`str` or `Path`, *optional*):
            Keeps what attacks read, by weights and rows, so that another attack needs no forward pass.
        progress (`bool`):
            Progress bars.
        subject_kwargs:
            For [`as_subject`]: `processing_class` (the tokenizer), `max_length`, `batch_size`, `qa`.

    Returns:
        [`Privacy`].

    Raises:
        `ValueError`: for rates out of range, too few rows, members among the non-members, sets with labels of
            different kinds, or an unknown attack.
    """
    fprs = check_fprs(fprs)
    if not 0 < calibration_share < 1:
        raise ValueError(f"calibration_share={calibration_share}; give a share above 0 and below 1.")
    forget, nonmembers = as_rows(forget, "forget"), as_rows(nonmember_data, "nonmember_data")
    retain = None if retain is None else as_rows(retain, "retain")
    common = {**subject_kwargs, "progress": progress, "cache": None if cache_dir is None else SignalCache(cache_dir)}
    subject = as_subject(model, **common)
    reference = None if reference_model is None else as_subject(reference_model, **common)
    chosen = choose_attacks(attacks, subject, reference, shadows, seed)
    rest = chosen, (forget, nonmembers, retain), fprs, calibration_share, seed
    found = _evaluated(subject, *rest)
    if any(map(reads_representations, chosen)):
        found.representations = picture(subject, forget, retain, nonmembers, seed)
    if retrained is not None:
        if not isinstance(retrained, Privacy):
            retrained = _evaluated(as_subject(retrained, **common), *rest)
        found.compare(retrained)
    return found


def choose_attacks(
    attacks: Sequence[str | BaseAttack] | None,
    subject: Subject,
    reference: Subject | None = None,
    shadows: Shadows | None = None,
    seed: int = 0,
) -> list[BaseAttack]:
    """Attacks by name or as they are; `lira` stands for all variants that the shadow models allow.

    Raises:
        `ValueError`: for an unknown or repeated name, or one that lacks its reference or shadow models.
    """
    named = named_attacks(seed)
    if attacks is None:
        attacks = [
            *default_attacks(subject),
            *(["reference"] if reference is not None else []),
            *(["lira"] if shadows is not None else []),
        ]
    attacks = [attacks] if isinstance(attacks, (str, BaseAttack)) else attacks
    check_attack_names([attack for attack in attacks if isinstance(attack, str)])
    chosen: list[BaseAttack] = []
    for attack in attacks:
        if isinstance(attack, BaseAttack):
            chosen.append(attack)
        elif attack in named:
            chosen.append(named[attack])
        elif attack == "reference" and reference is not None:
            chosen.append(ReferenceAttack(reference))
        elif attack == "lira" and shadows is not None:
            chosen.extend(lira_attacks(shadows))
        else:
            needed = {"reference": "`reference_model`", "lira": "`shadows`, of `train_shadows`"}
            raise ValueError(f"The attack {attack!r} needs {needed[attack]}.")
    names = [attack.name for attack in chosen]
    if not names or len({*names, "worst"}) <= len(names) or any("/" in name for name in names):
        raise ValueError(f"attacks={names}; give at least one, each name once, none with `/`, none called `worst`.")
    return chosen


def _evaluated(subject: Subject, attacks, sets, fprs, calibration_share, seed) -> Privacy:
    forget, nonmembers, retain = sets
    members = {"forget": forget} | ({} if retain is None else {"retain": retain})
    check_disjoint(subject, members, nonmembers)
    check_heads(subject, {**members, "nonmember_data": nonmembers})
    split = split_nonmembers(len(nonmembers), calibration_share, seed)
    found = _attack(subject, attacks, sets, fprs, split, seed)
    keys = {"forget": subject.row_keys(forget), "nonmember": subject.row_keys(nonmembers)}
    found.settings = {
        "n": {"forget": len(forget), "nonmember": len(nonmembers), "retain": None if retain is None else len(retain)},
        "n_calibration": len(split[0]),
        "fprs": fprs,
        "attacks": [attack.name for attack in attacks],
        "attack_settings": {attack.name: attack.settings() for attack in attacks},
        "calibration_share": calibration_share,
        "seed": seed,
        "rows": {name: digest(rows)[:16] for name, rows in keys.items()},
    }
    return found


def _attack(subject: Subject, attacks, sets, fprs, split, seed) -> Privacy:
    forget, nonmembers, retain = sets
    metrics: dict[str, MetricResult] = {}
    scores: dict[str, dict[str, list[float | None]]] = {}
    table, effects = [], []
    for attack in attacks:
        members, others = (_checked(attack, s, n) for s, n in zip(
            attack.score_sets(subject, forget, nonmembers), (len(forget), len(nonmembers)), strict=True
        ))  # fmt: skip
        scores[attack.name] = {"forget": _listed(members), "nonmember": _listed(others)}
        rates = _rates(members, others, fprs, split, attack.design_effect)
        metrics |= {f"{attack.name}/{key}": result for key, result in rates.items()}
        suspicion = _suspicion(members, others[split[0]])
        table += suspicion
        effects += [attack.design_effect] * len(suspicion)
        if isinstance(attack, ScrubAttack):
            metrics[f"{attack.name}/accuracy"] = _accuracy(attack, subject, forget, nonmembers)
        if retain is not None and attack.any_rows:
            known = _checked(attack, attack.compute_scores(subject, retain), len(retain))
            metrics[f"{attack.name}/retain_auc"] = _auc(known, others, "retain_auc", "none")
    metrics |= worst_case(metrics, np.array(table), len(forget), fprs, effects, seed)
    return Privacy(metrics, scores)


def _rates(members: np.ndarray, others: np.ndarray, fprs, split, effect: float) -> dict[str, MetricResult]:
    """AUC, and the TPR at every rate in every tail, of the rows that have a score."""
    found = {"auc": _auc(members, others, "auc", "closer_to_retrained", effect)}
    defined = np.isfinite(members)
    calibration, evaluation = (others[part][np.isfinite(others[part])] for part in split)
    enough = min(defined.sum(), 2 * len(calibration), 2 * len(evaluation)) >= MIN_ROWS
    if not enough:
        names = [*(f"tpr@{fpr_name(fpr)}{end}" for fpr in fprs for end in ENDINGS.values()), "tpr_zero_fp"]
        return found | {name: _undefined(name.split("/")[0], defined) for name in names}
    for fpr in fprs:
        for tail in TAILS:
            result = tpr_at_fpr(members, calibration, evaluation, fpr, tail, effect)
            if tail == "upper":
                result.details["roc_tpr"] = roc_tpr(members, np.concatenate([calibration, evaluation]), fpr)
            found[f"tpr@{fpr_name(fpr)}{ENDINGS[tail]}"] = result
    found["tpr_zero_fp"] = tpr_at_zero_fp(members, calibration, evaluation, effect=effect)
    return found


def _undefined(name: str, defined: np.ndarray) -> MetricResult:
    """What too few rows with a score leave."""
    n = int(defined.sum())
    return MetricResult(
        name, None, n, "closer_to_retrained", undefined=len(defined) - n, details={"status": "undefined"}
    )


def _auc(members: np.ndarray, others: np.ndarray, name: str, direction: str, effect: float = 1.0) -> MetricResult:
    known, unseen = members[np.isfinite(members)], others[np.isfinite(others)]
    undefined = len(members) - len(known)
    if min(len(known), len(unseen)) < MIN_ROWS:
        return replace(_undefined(name, np.isfinite(members)), direction=direction)
    return replace(auc_result(known, unseen, effect), name=name, direction=direction, undefined=undefined)


def _accuracy(attack: ScrubAttack, subject: Subject, forget, nonmembers) -> MetricResult:
    mean, deviation, size = attack.accuracy(subject, forget, nonmembers)
    return MetricResult(
        "accuracy",
        finite(mean),
        2 * size,
        "closer_to_retrained",
        variant="five random splits, balanced",
        details={"standard_deviation": finite(deviation), "chance": 0.5}
        | ({} if size >= MIN_ROWS else {"status": "undefined"}),
    )


def _suspicion(members: np.ndarray, calibration: np.ndarray) -> list[np.ndarray]:
    """Scores of members and calibration non-members in every tail; who has none is never suspicious."""
    defined = calibration[np.isfinite(calibration)]
    centre = float(np.median(defined)) if len(defined) else 0.0
    pooled = np.concatenate([members, calibration])
    return [np.where(np.isfinite(pooled), tail_scores(pooled, centre, tail), -np.inf) for tail in TAILS]


def _checked(attack: BaseAttack, scores: Any, n: int) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (n,):
        raise ValueError(
            f"The attack {attack.name!r} gave scores of shape {scores.shape} for {n} rows; give one a row."
        )
    if not np.isfinite(scores).all():
        logger.warning(
            "%s: %d of %d rows have no score and are left out.", attack.name, (~np.isfinite(scores)).sum(), n
        )
    return scores


def _listed(scores: np.ndarray) -> list[float | None]:
    return [finite(score) for score in scores.tolist()]
