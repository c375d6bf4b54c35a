# SPDX-License-Identifier: Apache-2.0
"""How the numbers of a `privacy.json` are read: keys, cells, words."""

import math
from collections.abc import Iterator


TAIL_WORDS = {"upper": "scores too high", "lower": "scores too low", "both": "either"}
TAIL_PERCENTILES = (50, 90, 99)
TAIL_HEADS = ("median", "90th percentile", "99th percentile", "mean of the highest tenth", "highest")


def fpr_name(fpr: float) -> str:
    """`0.0005` as `5e-4`."""
    digits, exponent = f"{fpr:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def attacks_of(model: dict) -> list[str]:
    """Attacks on a model, in their order."""
    return list(model["scores"])


def rate_of(model: dict, attack: str, fpr: float, tail: str = "upper") -> dict:
    """The TPR of an attack at a rate: value, interval, details."""
    return model["metrics"][f"{attack}/tpr@{fpr_name(fpr)}" + ("" if tail == "upper" else f"/{tail}")]


def worst_of(model: dict, fpr: float) -> dict:
    """The best attack's TPR at a rate."""
    return model["metrics"][f"worst/tpr@{fpr_name(fpr)}"]


def zero_fp_of(model: dict, attack: str) -> dict:
    """The share of the forget rows above all calibration non-members."""
    return model["metrics"][f"{attack}/tpr_zero_fp"]


def defined_scores(model: dict, attack: str) -> tuple[list[float], list[float]]:
    """Scores of forget rows and of non-members, of those that have one."""
    scores = model["scores"][attack]
    return tuple([score for score in scores[name] if score is not None] for name in ("forget", "nonmember"))


def representations_of(model: dict) -> dict | None:
    """The picture of a model's representations; None where no attack read them, or there are no points."""
    found = model.get("representations")
    return found if found and found["points"] else None


def tail_cells(values: list[float]) -> list[str]:
    """[`TAIL_HEADS`] of a set's scores.

    A percentile that fewer than one row lies above is `-`: it would be the largest once more.
    """
    import numpy as np

    if not values:
        return ["-"] * len(TAIL_HEADS)
    ranked = np.sort(values)
    shares = [share if len(values) * (100 - share) >= 100 else None for share in TAIL_PERCENTILES]
    percentiles = [None if share is None else np.percentile(ranked, share) for share in shares]
    tenth = ranked[-math.ceil(len(ranked) / 10) :].mean()
    return ["-" if value is None else f"{value:.4f}" for value in (*percentiles, tenth, ranked[-1])]


def rate_cell(metric: dict) -> str:
    """`0.031 [0.009, 0.078]`, or why there is no number."""
    details = metric["details"]
    if metric["value"] is None:
        if details.get("status") == "unresolved":
            return f"unresolved ({details['n_calibration']:,} of {details['needs_calibration']:,})"
        return "undefined"
    low, high = metric["interval"]
    tied = ", tied" if details["status"] == "tied" else ""
    low = "<1e-4" if 0 < low < 1e-4 else f"{low:.2g}"
    return f"{metric['value']:.3g} [{low}, {high:.2g}]{tied}"


def interval_cell(metric: dict, sign: bool = False) -> str:
    """`0.52 [0.41, 0.63]`."""
    if metric["value"] is None:
        return "undefined"
    form = "+.3f" if sign else ".3f"
    if metric["interval"] is None:
        return format(metric["value"], form)
    low, high = (format(end, form) for end in metric["interval"])
    return f"{metric['value']:{form}} [{low}, {high}]"


def chance_cell(metric: dict) -> str:
    """Chance level with its 95 % range, and how likely chance reaches the value."""
    if metric["value"] is None:
        return "-"
    details = metric["details"]
    low, high = details["chance_range"]
    return f"{details['chance']:.2g} [{low:.2g}, {high:.2g}], p = {details['p_chance']:.2g}"


def differences(model: dict) -> Iterator[tuple[str, dict]]:
    """Differences to the retrained model in AUC and in the rates of high scores, by metric."""
    for key, metric in model["metrics"].items():
        if key.endswith("/vs_retrained") and key.count("/") == 2:
            yield key.removesuffix("/vs_retrained"), metric
