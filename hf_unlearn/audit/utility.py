# SPDX-License-Identifier: Apache-2.0
"""What is left of the model: one number over everything that was to be kept."""

from collections.abc import Mapping

import numpy as np

from .result import RESAMPLES, MetricResult


TERMS = ("probability", "rouge", "truth_ratio")
RECALL = "ROUGE-L recall"


def model_utility(terms: Mapping[str, MetricResult], seed: int = 0) -> MetricResult:
    """Harmonic mean of probability, ROUGE-L recall and truth score over the sets to be kept (Maini et al. 2024, TOFU,
    section 2.2: nine terms, three metrics on retain set, real authors and world facts).

    0 as soon as one term is 0. The interval resamples the items of each set, for all metrics of a set alike.

    Args:
        terms (`Mapping[str, MetricResult]`):
            `"retain/probability"` and so on, with their per-item values. All terms of a set have its items.
        seed (`int`):
            Of the resampling.

    Returns:
        `MetricResult`: value in [0, 1], `None` if a term is undefined; `n` counts the items of all sets, `variant`
        names the terms, `details["terms"]` holds their values.

    Raises:
        `ValueError`: without terms, with terms of sets that are not to be kept, or with terms of one set that differ
            in their number of items.
    """
    if not terms:
        raise ValueError(
            f"model_utility needs at least one term: {', '.join(TERMS)} of a set with role 'retain'. Give such a set."
        )
    unkept = [name for name, term in terms.items() if term.direction != "higher"]
    if unkept:
        raise ValueError(
            f"{', '.join(unkept)}: better is {terms[unkept[0]].direction!r}. Terms of model_utility are of sets to be "
            "kept: make them with role='retain'."
        )
    _check_definitions(terms)
    sets = _items_by_set(terms)
    values = {name: term.value for name, term in terms.items()}
    value = None if None in values.values() else _harmonic_mean(np.array([list(values.values())]))[0]
    interval = None if value is None else _interval(list(sets.values()), seed)
    return MetricResult(
        name="model_utility",
        value=None if value is None else float(value),
        n=sum(items.shape[1] for items in sets.values()),
        direction="higher",
        interval=interval,
        interval_method=None if interval is None else "bootstrap percentile",
        variant=f"{len(terms)} terms: {', '.join(terms)}",
        details={"terms": values},
    )


def _check_definitions(terms: Mapping[str, MetricResult]) -> None:
    """Refuses ROUGE that is no recall as `rouge_score` has it, and truth ratios of several variants."""
    variants: dict[str, dict] = {}
    for name, term in terms.items():
        variants.setdefault(name.rsplit("/", 1)[-1], {}).setdefault(term.variant, name)
    other = [name for variant, name in variants.get("rouge", {}).items() if variant not in (None, RECALL)]
    if other:
        raise ValueError(f"{other[0]} is {terms[other[0]].variant}; a term of model_utility is {RECALL}.")
    if len(variants.get("truth_ratio", {})) > 1:
        told = ", ".join(f"{name} {variant!r}" for variant, name in variants["truth_ratio"].items())
        raise ValueError(f"The truth ratios are of several variants ({told}). Take one for all sets.")


def _items_by_set(terms: Mapping[str, MetricResult]) -> dict[str, np.ndarray]:
    """Per-item values of each set, `[terms of the set, items]`, NaN where undefined."""
    grouped: dict[str, list] = {}
    for name, term in terms.items():
        grouped.setdefault(name.rsplit("/", 1)[0], []).append(term.per_item)
    for name, columns in grouped.items():
        sizes = {len(column) for column in columns}
        if len(sizes) > 1:
            raise ValueError(f"The terms of set {name!r} have {sorted(sizes)} items; they must be of the same items.")
    return {name: np.array(columns, dtype=np.float64) for name, columns in grouped.items()}


def _harmonic_mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where a value is 0."""
    with np.errstate(divide="ignore"):
        return values.shape[-1] / (1 / values).sum(axis=-1)


def _interval(sets: list[np.ndarray], seed: int) -> tuple[float, float] | None:
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        columns = [items[:, rng.integers(items.shape[1], size=items.shape[1])] for items in sets]
        defined = [~np.isnan(items) for items in columns]
        counts = np.concatenate([mask.sum(axis=1) for mask in defined])
        sums = np.concatenate([np.nansum(items, axis=1) for items in columns])
        # A resample that happens to hold no defined item of a term says nothing.
        if counts.all():
            draws.append(sums / counts)
    if not draws:
        return None
    utilities = _harmonic_mean(np.array(draws))
    if np.ptp(utilities) == 0:
        return None
    low, high = np.percentile(utilities, [2.5, 97.5])
    return float(low), float(high)
