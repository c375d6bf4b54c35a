# SPDX-License-Identifier: Apache-2.0
"""Whether two results may stand side by side: the same metric by the same definition, on the same items."""

from collections.abc import Iterable, Mapping
from typing import Any


# Of a metric's details, those that make it another number.
DEFINING = ("k", "auc_retrained")
# Of an audit's settings, what no metric depends on.
SHOWN_ONLY = ("prompts",)
# The best of all attacks.
WORST = "worst"


def unlike(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """How two results of one metric's name differ in what they measure, in words; `None` where they do not.

    Args:
        mine (`Mapping`), other (`Mapping`):
            Metrics of a report.
    """
    if mine["variant"] != other["variant"]:
        return f"{mine['variant']!r} and {other['variant']!r}"
    about = [metric.get("details") or {} for metric in (mine, other)]
    for name in DEFINING:
        values = [details.get(name) for details in about]
        if None not in values and values[0] != values[1]:
            return f"{name} {values[0]:.4g} and {values[1]:.4g}"
    items = [metric["n"] + metric.get("undefined", 0) for metric in (mine, other)]
    return None if items[0] == items[1] else f"{items[0]} and {items[1]} items"


def unlike_settings(mine: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str | None:
    """How two audits differ in their rows or settings, in words; `None` where they do not, or one does not say."""
    if not mine or not other:
        return None
    differs = [key for key in mine.keys() & other.keys() - {*SHOWN_ONLY, "sets"} if mine[key] != other[key]]
    sets = [about.get("sets", {}) for about in (mine, other)]
    rows = sorted(name for name in sets[0].keys() & sets[1].keys() if sets[0][name] != sets[1][name])
    told = [f"{key} ({mine[key]!r} and {other[key]!r})" for key in sorted(differs)]
    told += [f"rows of the set {', '.join(rows)}"] if rows else []
    return ", ".join(told) or None


def unlike_attack(attack: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """How an attack on two models (or `"worst"`, the best of them) differs, by the settings of their results; `None`
    where it does not."""
    names = ("rows", "calibration_share", "seed")
    differs = [name for name in names if mine.get(name) != other.get(name)]
    if attack == WORST:
        # The best of other attacks is another number.
        differs += ["set of attacks"] if mine.get("attacks") != other.get("attacks") else []
        told = [unlike_attack(name, mine, other) for name in mine.get("attack_settings", {})]
        return next(filter(None, told), None) or (f"attacked with another {', '.join(differs)}" if differs else None)
    how = [settings.get("attack_settings", {}).get(attack) for settings in (mine, other)]
    if how[0] != how[1] and None in how:
        return "attacked in ways that are not both known: one result, of an older version, does not say it"
    if how[0] != how[1]:
        one, two = ({} if settings is None else settings for settings in how)
        differs += [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    return f"attacked with another {', '.join(differs)}" if differs else None


def check_alike(models: Iterable[Mapping[str, Any]]) -> None:
    """Refuses models whose numbers would stand in one table though they measure other things.

    Args:
        models (`Iterable[dict]`):
            Of reports, with `name`, `metrics` and, from newer versions, `audited`.

    Raises:
        `ValueError`: naming two models, and what differs.
    """
    first: dict[str, Mapping[str, Any]] = {}
    seen: list[Mapping[str, Any]] = []
    for model in models:
        for name, metric in model["metrics"].items():
            known = first.setdefault(name, model)
            if differs := unlike(known["metrics"][name], metric):
                _refuse(known, model, f"{name}: {differs}")
        for known in seen:
            if differs := unlike_settings(known.get("audited"), model.get("audited")):
                _refuse(known, model, differs)
        seen.append(model)


def _refuse(one: Mapping[str, Any], other: Mapping[str, Any], differs: str) -> None:
    raise ValueError(
        f"{one['name']!r} and {other['name']!r} were not measured alike ({differs}), so their numbers cannot be "
        "compared. Report them apart."
    )
