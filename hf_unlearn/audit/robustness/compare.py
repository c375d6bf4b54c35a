# SPDX-License-Identifier: Apache-2.0
"""Models under the same attack, compared: every model by its own strongest setting."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..result import MetricResult, mean_result
from .keys import key_tokens
from .maximum import joining, row_maximum
from .measured import Measured, RowScores
from .recovery import NOT_RECOVERED, SUPPRESSED, UNRESOLVED, decides, remaining, verdict


# An attack that leaves the original model less than this share of what it knew damages it.
DAMAGING = 0.95
PROVISIONAL = 3
NO_COMPARATOR = "no model or rows that never knew the answers to compare with"
NO_ORIGINAL = "no original model to compare with"


@dataclass
class Arms:
    """Results of one attack on the models that are compared."""

    unlearned: Any
    retrained: Any = None
    original: Any = None

    @property
    def comparator(self) -> str:
        """`retrained`, `holdout` or `none`: as the settings say, or, for `auto`, what is there."""
        said = self.unlearned.settings["comparator"]
        if said != "auto":
            return said
        if self.retrained is not None:
            return "retrained"
        return "holdout" if any(one.holdout is not None for one in self.unlearned.measured) else "none"

    @cached_property
    def keys(self) -> list[list[int]] | None:
        """Key tokens of every forget row; `None` without an original and a retrained model."""
        if self.original is None or self.retrained is None or self.original.before.tested.logps is None:
            return None
        return key_tokens(self.original.before.tested, self.retrained.before.tested)

    @property
    def groups(self) -> list[Hashable]:
        """The group of each forget row."""
        return self.unlearned.settings["groups"]


def before_metrics(found) -> dict[str, MetricResult]:
    """Means over the forget rows of the model as it is, and under the strongest setting, with intervals over rows."""
    metrics = {}
    for name in found.settings["scores"]:
        values = found.before.tested.values(name)
        if any(value is not None for value in values):
            metrics[f"before/{name}"] = replace(mean_result(name, values, "lower"), name=f"before/{name}")
    arms = Arms(found)
    for family in dict.fromkeys(one.family for one in found.measured):
        for name in _scores(found, family):
            arm = _Arm(found, family, name, arms)
            if not arm.empty:
                key = arm.strongest(arm.settings)
                label = "/".join(part for part in (family, name, "after") if part)
                result = mean_result(name, arm.values(key), "lower", details={"setting": _label(key)})
                metrics[label] = replace(result, name=label)
    return metrics


def compared(arms: Arms) -> dict[str, MetricResult]:
    """`<family>/<score>/remaining` of every family and score, and `worst/remaining`, the one whose interval reaches
    highest."""
    arms, found = _with_maximum(arms), {}
    families = dict.fromkeys(one.family for one in arms.unlearned.measured)
    for family in families:
        for score in _scores(arms.unlearned, family):
            name = "/".join(part for part in (family, score, "remaining") if part)
            result = _family(arms, family, score, name)
            # One attack of many that says nothing is named by their maximum, and has no result of its own.
            if result is not None and not (result.details.get("idle") and result.details.get("optional")):
                found[name] = result
    return found | _worst(found, arms)


def _with_maximum(arms: Arms) -> Arms:
    """The arms with the best attack of each row as one more family, where attacks take part in it. Those that damage
    the original model are left out of it."""
    families = joining(arms.unlearned.measured)
    if not families:
        return arms
    original = arms.original
    left_out = [] if original is None else [name for name in families if _Arm(original, name, "", arms).all_damaged]
    kept = [name for name in families if name not in left_out]
    if arms.comparator == "holdout":
        # A maximum of more attacks is higher, also where nothing was ever known.
        kept = [name for name in kept if _Arm(arms.unlearned, name, "", arms).has_holdout]
    scores = list(dict.fromkeys(score for name in families for score in _scores(arms.unlearned, name)))

    def joined(result):
        if result is None:
            return None
        best = row_maximum(result, kept, scores, arms.keys, among=kept, left_out=left_out)
        return replace(result, measured=[*result.measured, best])

    return Arms(joined(arms.unlearned), joined(arms.retrained), joined(original))


def _family(arms: Arms, family: str, score: str, name: str) -> MetricResult | None:
    """`remaining` of one family and score; `None` where the score is not defined at all."""
    mine = _Arm(arms.unlearned, family, score, arms)
    if mine.empty:
        return None
    bound, resolution = (arms.unlearned.settings[key] for key in ("bound", "resolution"))
    details = {"before": mine.before, "seeds": mine.seeds, "comparator": arms.comparator}
    details |= {"provisional": True} if mine.seeded and mine.seeds < PROVISIONAL else {}
    never_knew = mine.has_holdout if arms.comparator == "holdout" else arms.retrained is not None
    never_knew = never_knew and arms.comparator != "none"
    for reason, lacks in ((NO_ORIGINAL, arms.original is None), (NO_COMPARATOR, not never_knew)):
        if lacks:
            chosen = mine.strongest(mine.settings)
            details |= {"after": mine.mean(chosen), "setting": _label(chosen)}
            return _unresolved(name, mine.n, reason, **details)
    theirs = _Arm(arms.original, family, score, arms)
    other = mine if arms.comparator == "holdout" else _Arm(arms.retrained, family, score, arms)
    which = "holdout" if arms.comparator == "holdout" else "tested"
    for one in (theirs, other):
        mine.check_alike(one)
    refused = [key for key in theirs.settings if theirs.damaged(key)]
    settings = [key for key in mine.settings if key not in refused]
    details |= {"refused": [_label(key) for key in refused]} if refused else {}
    details |= mine.told
    if not settings:
        reason = f"every setting of the attack damages the original model on the {theirs.watched[0]} rows"
        return _unresolved(name, mine.n, reason, idle=True, **details)
    # An attack that did not take place, in whichever model, says nothing.
    failed = {key: why for one in (mine, other, theirs) for key in settings if (why := one.failed(key))}
    settings = [key for key in settings if key not in failed]
    details |= {"failed": {_label(key): why for key, why in failed.items()}} if failed else {}
    if not settings:
        return _unresolved(name, mine.n, f"the attack had no effect: {next(iter(failed.values()))}", **details)
    u, o = mine.strongest(settings), theirs.strongest(settings)
    r = other.strongest(settings, which)
    details |= {
        "after": mine.mean(u),
        "original_before": theirs.before,
        "original_after": theirs.mean(o),
        f"{arms.comparator}_after": other.mean(r, which),
        "setting": _label(u),
        "settings": {"original": _label(o), arms.comparator: _label(r)},
        "curve": [_point(key, mine, theirs, other, which) for key in settings],
    }
    details |= _race(details["curve"], u, taught=arms.unlearned.settings.get("data") == "teach")
    at = {"bound": bound, "resolution": resolution, "name": name}
    if which == "holdout":
        at["holdout_groups"] = mine.groups(r, which)
    never = other.before_rows(r, which)
    before = remaining(mine.before_rows(u), never, theirs.before_rows(u), mine.groups(u), **at)
    details["remaining_before"] = before.value if before.value is not None else before.details.get("estimate")
    result = remaining(mine.values(u), other.values(r, which), theirs.values(o), mine.groups(u), **at, **details)
    if result.value is not None and details["remaining_before"] is not None:
        result.details["recovery"] = result.value - max(0.0, details["remaining_before"])
    result.details["verdict"] = verdict([result], bound)
    return result


class _Arm:
    """One model's values of a score, by setting; those of several seeds one after the other."""

    def __init__(self, result, family: str, score: str, arms: Arms):
        self.result, self.family, self.score, self.arms = result, family, score, arms
        found = _by_setting(one for one in result.measured if one.family == family)
        self.settings = found
        self.seeds = max((len(seeds) for seeds in found.values()), default=0)
        self.seeded = any(one.seed is not None for seeds in found.values() for one in seeds)
        self.n = max((len(self.values(key)) for key in found), default=0)

    @property
    def empty(self) -> bool:
        return not any(value is not None for key in self.settings for value in self.values(key))

    @property
    def has_holdout(self) -> bool:
        """Whether rows that no model saw were attacked too; an attack may leave them out of some families."""
        return all(one.holdout is not None for found in self.settings.values() for one in found)

    def values(self, key: tuple, which: str = "tested") -> list[float | None]:
        parts = [getattr(one, which) for one in self.settings[key]]
        keys = self.arms.keys if which == "tested" else None
        return [value for part in parts if part is not None for value in part.values(self.score, keys)]

    def groups(self, key: tuple, which: str = "tested") -> list[Hashable]:
        names = self.arms.groups if which == "tested" else self.result.settings["holdout_groups"]
        return [names[row] for one in self.settings[key] for row in getattr(one, which).rows]

    def mean(self, key: tuple, which: str = "tested") -> float | None:
        return _mean(self.values(key, which))

    def strongest(self, settings: Sequence[tuple], which: str = "tested") -> tuple:
        """The setting that brings most out of this model. A maximum of one model is compared with a maximum of the
        other, never with a fixed setting of it."""
        means = {key: self.mean(key, which) for key in settings}
        return max(settings, key=lambda key: -1.0 if means[key] is None else means[key])

    def check_alike(self, other: "_Arm") -> None:
        """Refuses results whose settings, or rows under a setting, are not the same: values are held against each
        other by place.

        Raises:
            `ValueError`
        """
        mine, theirs = (
            {key: [(one.seed, one.tested.rows) for one in found] for key, found in arm.settings.items()}
            for arm in (self, other)
        )
        if mine != theirs:
            differs = next(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
            raise ValueError(
                f"Two models were not attacked alike: {_label(differs)} was measured on other rows, with other seeds, "
                "or in one of them only. Audit both with the same settings."
            )

    def before_rows(self, key: tuple, which: str = "tested") -> list[float | None]:
        """The model as it is, on the rows that a setting tested."""
        before: RowScores | None = getattr(self.result.before, which)
        if before is None or (self.score not in before.scores and before.logps is None):
            return [None] * len(self.values(key, which))
        parts = [getattr(one, which) for one in self.settings[key]]
        rows = [row for part in parts if part is not None for row in part.rows]
        keys = self.arms.keys if which == "tested" else None
        values = dict(zip(before.rows, before.values(self.score, keys), strict=True))
        return [values.get(row) for row in rows]

    @property
    def before(self) -> float | None:
        return next((_mean(self.before_rows(key)) for key in self.settings), None)

    @property
    def watched(self) -> tuple[str, float]:
        """The rows by which damage is seen, and the least share of what was known of them that must be left."""
        which, share = self.result.settings.get("damaging", ("tested", DAMAGING))
        return which, share

    def damaged(self, key: tuple) -> bool:
        """Whether a setting hurts this (the original) model, by one score for all: a coarse one would leave out other
        settings, and other rows have no key tokens."""
        which, share = self.watched
        judge = self._of("probability") if which != "tested" else self._judge
        before, after = _mean(judge.before_rows(key, which)), judge.mean(key, which)
        return before is not None and after is not None and after < share * before

    @cached_property
    def _judge(self) -> "_Arm":
        """The first score that there is."""
        arms = (self._of(score) for score in _scores(self.result, self.family))
        return next((arm for arm in arms if not arm.empty), self)

    def _of(self, score: str) -> "_Arm":
        return _Arm(self.result, self.family, score, self.arms)

    @property
    def all_damaged(self) -> bool:
        """Whether every setting hurts this (the original) model."""
        return all(self.damaged(key) for key in self.settings)

    @property
    def told(self) -> dict[str, Any]:
        """What the family says of itself beside its scores."""
        more = {} if not self.settings else next(iter(self.settings.values()))[0].more
        return {name: more[name] for name in ("among", "left_out", "optional", "says") if name in more}

    def failed(self, key: tuple) -> str | None:
        """Why a setting changed nothing at all, if it says so."""
        return next((one.more["failed"] for one in self.settings[key] if one.more.get("failed")), None)


def _point(key: tuple, mine: _Arm, theirs: _Arm, other: _Arm, which: str) -> dict[str, Any]:
    """Means of one setting, for the figure."""
    u, o, r = mine.mean(key), theirs.mean(key), other.mean(key, which)
    share = None if None in (u, o, r) or o - r <= 0 else (u - r) / (o - r)
    return {"setting": key[1], "step": key[2], "unlearned": u, "original": o, "never_knew": r, "remaining": share}


def _race(curve: list[dict[str, Any]], chosen: tuple, taught: bool) -> dict[str, Any]:
    """Of attacks that take steps: the first after which half is there (`steps_to_half`, `None` if it never is); and
    where the tested rows themselves are taught, how many steps fewer the unlearned model needs for what it shows than
    one that never knew them (`saved_steps`, `None` where that one does not get there)."""
    if chosen[2] is None:
        return {}
    half = [point["step"] for point in curve if (point["remaining"] or 0) >= 0.5]
    found = {"steps_to_half": min(half, default=None)}
    if taught:
        reached = next(p["unlearned"] for p in curve if (p["setting"], p["step"]) == chosen[1:])
        there = [p["step"] for p in curve if None not in (reached, p["never_knew"]) and p["never_knew"] >= reached]
        found["saved_steps"] = min(there) - chosen[2] if there else None
    return found


def _worst(found: dict[str, MetricResult], arms: Arms) -> dict[str, MetricResult]:
    """The result whose interval reaches highest; unresolved if none is resolved, or one might be above it."""
    bound = arms.unlearned.settings["bound"]
    resolved = {name: result for name, result in found.items() if result.value is not None}
    resolved = {name: result for name, result in resolved.items() if decides(result)} or resolved
    if not found:
        return {}
    said = verdict([*found.values()], bound)
    if said == UNRESOLVED:
        # What the original model does not show either, and what only adds to other results, leaves nothing open.
        said = verdict([result for result in found.values() if not _is_aside(result)], bound)
    budget = _budget(arms.unlearned)
    if not resolved:
        first = next(iter(found.items()))
        return {"worst/remaining": _unresolved("worst/remaining", first[1].n, first[1].details["reason"],
                                               which=first[0], verdict=UNRESOLVED, budget=budget,
                                               **_shown(first[1]))}  # fmt: skip
    name = max(resolved, key=lambda key: (resolved[key].interval or (0, resolved[key].value))[1])
    worst = resolved[name]
    details = {"which": name, "verdict": said, "status": "resolved", "budget": budget, **_shown(worst)}
    unknown = [key for key, result in found.items() if result.value is None and not _is_aside(result)]
    # A bound that the worst of the others keeps is not kept by these.
    details |= {"open": unknown} if unknown else {}
    return {
        "worst/remaining": MetricResult(
            "worst/remaining",
            worst.value,
            worst.n,
            "lower",
            interval=worst.interval,
            interval_method=worst.interval_method,
            details=details,
        )
    }


def _budget(result: Any) -> dict[str, Any]:
    """What an attack tried, and what that took."""
    seeds = {one.seed for one in result.measured} - {None}
    tried = {"settings": len({one.key for one in result.measured}), "seeds": len(seeds)}
    return {name: value for name, value in {**tried, **result.cost}.items() if value}


def _is_aside(result: MetricResult) -> bool:
    return bool(result.details.get("idle") or result.details.get("optional"))


def _shown(result: MetricResult) -> dict[str, Any]:
    """What a table shows beside `remaining`."""
    names = ("before", "after", "original_after", "retrained_after", "holdout_after", "setting", "clusters")
    return {
        name: result.details[name] for name in (*names, "provisional", "left_out", "says") if name in result.details
    }


def _unresolved(name: str, n: int, reason: str, **details) -> MetricResult:
    details = {"status": UNRESOLVED, "verdict": UNRESOLVED, **details, "reason": reason}
    return MetricResult(name, None, n, "lower", details=details)


def _by_setting(measured) -> dict[tuple, list[Measured]]:
    found = defaultdict(list)
    for one in measured:
        found[one.key].append(one)
    return dict(found)


def _scores(found, family: str | None = None) -> list[str]:
    """Scores of a result: those that are asked for where tokens are scored, and the attack's own."""
    measured = [one for one in found.measured if family in (None, one.family)]
    own = dict.fromkeys(name for one in measured for name in one.tested.scores)
    asked = found.settings["scores"] if any(one.tested.logps is not None for one in measured) else []
    return [*asked, *own]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _label(key: tuple) -> str:
    return ", ".join([key[1], *([f"step {key[2]}"] if key[2] is not None else [])])


__all__ = ["NOT_RECOVERED", "SUPPRESSED", "UNRESOLVED", "Arms", "before_metrics", "compared"]
