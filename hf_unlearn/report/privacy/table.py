# SPDX-License-Identifier: Apache-2.0
"""What a `report.json` tells of membership inference: the best attack at each rate of false accusations."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..naming import UNDEFINED, percent
from ..sections import section_cell
from .view import worst_of


PRIVACY_FOLDER = "privacy"
ABOUT = "Membership inference"
TAILS = {"lower": "too low", "both": "too far"}
TITLE = "Who can tell the forget rows?"
CAPTION = (
    "TPR: the share of the forget rows that the best attack finds, with its 95% interval, where it may accuse this "
    "share of unseen rows wrongly (FPR). Achieved: the FPR on other unseen rows than those that set the threshold. "
    "Chance: what the best of as many meaningless attacks reaches, with its 95% range; p: how likely that reaches the "
    "TPR. Unresolved: too few unseen rows set the threshold for this rate, which does not mean 0."
)


@dataclass(frozen=True)
class PrivacyCell:
    """What attacks find in one model at one rate: the TPR in percent, its interval, and lines on how to read it."""

    text: str
    interval: str
    lines: tuple[str, ...]


def add_privacy(models: list[dict], privacy: dict) -> None:
    """Gives the models of a report what was found in them: settings, and the best attack at each rate.

    Args:
        models (`list[dict]`): of a `report.json`.
        privacy (`dict`): the content of a `privacy.json`; who is who is told by the paths.
    """
    found = {model["path"]: model for model in privacy["models"]}
    for model in models:
        if model["path"] in found:
            model["privacy"] = _summary(found[model["path"]])


def attacked_models(report: dict) -> list[dict]:
    """The models of a report that were attacked."""
    return [model for model in report["models"] if model.get("privacy")]


def rates_of(report: dict) -> list[float]:
    """All false positive rates that were asked for, smallest first."""
    return sorted({fpr for model in attacked_models(report) for fpr in model["privacy"]["settings"]["fprs"]})


def privacy_cell(model: dict, fpr: float) -> PrivacyCell:
    """What the best attack finds in a model at a rate."""
    if fpr not in model["privacy"]["settings"]["fprs"]:
        return PrivacyCell(UNDEFINED, "", ())
    metric = worst_of(model["privacy"], fpr)
    details = metric["details"]
    if metric["value"] is None:
        if details.get("status") != "unresolved":
            return PrivacyCell("undefined", "", ())
        had, needed = details["n_calibration"], details["needs_calibration"]
        return PrivacyCell("unresolved", "", (f"has {had:,} of {needed:,} rows",))
    attack, _, tail = details["attack"].partition("/")
    low, high = details["chance_range"]
    lines = (
        f"achieved FPR {percent(details['achieved_fpr'])}",
        f"chance {percent(details['chance'])} ({percent(low)}–{percent(high)})",
        f"p = {details['p_chance']:.2g}",
        f"{attack}, {TAILS[tail]}" if tail else attack,
    )
    return PrivacyCell(percent(metric["value"]), "[{}, {}]".format(*map(percent, metric["interval"])), lines)


def privacy_section(models: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The section of a report on these models; `None` where none of them was attacked."""
    report = {"models": list(models)}
    if not attacked_models(report):
        return None
    rates = rates_of(report)
    rows = [
        {"model": model["name"], "cells": [section_cell(privacy_cell(model, fpr)) for fpr in rates]}
        for model in attacked_models(report)
    ]
    return {
        "audit": PRIVACY_FOLDER,
        "title": TITLE,
        "about": ABOUT,
        "text": f"{sizes(report)} {CAPTION}",
        "short": "TPR with 95% interval, of the best attack",
        "headings": [rate_heading(fpr) for fpr in rates],
        "rows": rows,
        "more": "Every attack, with plots",
        "file": f"{PRIVACY_FOLDER}/{PRIVACY_FOLDER}.md",
    }


def rate_name(fpr: float) -> str:
    """`0.001` as `0.1 %`."""
    return f"{100 * fpr:g} %"


def rate_heading(fpr: float) -> str:
    """`0.001` as `TPR at 0.1 % FPR, %`."""
    return f"TPR at {rate_name(fpr)} FPR, %"


def sizes(report: dict) -> str:
    """How many rows were told apart, by what."""
    settings = attacked_models(report)[0]["privacy"]["settings"]
    n, calibration = settings["n"], settings["n_calibration"]
    return (
        f"{n['forget']:,} forget rows, {n['nonmember']:,} unseen ones, of which {calibration:,} set thresholds; "
        f"attacks: {', '.join(settings['attacks'])}, in both tails."
    )


def _summary(found: dict) -> dict:
    worst = {
        name: {key: value for key, value in metric.items() if key != "per_item"}
        for name, metric in found["metrics"].items()
        if name.startswith("worst/")
    }
    return {"settings": found["settings"], "metrics": worst}
