# SPDX-License-Identifier: Apache-2.0
"""Models under the same attack, compared: every model by its own strongest setting."""

from dataclasses import replace
from typing import Any

from ..result import MetricResult, mean_result
from .arms import Arm, Arms, label_of, scores_of
from .maximum import joining, row_maximum
from .recovery import NOT_RECOVERED, SUPPRESSED, UNRESOLVED, decides, remaining, verdict


PROVISIONAL = 3
NO_COMPARATOR = "no model or rows that never knew the answers to compare with"
NO_ORIGINAL = "no original model to compare with"


def before_metrics(found) -> dict[str, MetricResult]:
    """Means over the forget rows of the model as it is, and under the strongest setting, with intervals over rows."""
    metrics = {}
    for name in found.settings["scores"]:
        values = found.before.tested.values(name)
        if any(value is not None for value in values):
            metrics[f"before/{name}"] = replace(mean_result(name, values, "lower"), name=f"before/{name}")
    arms = Arms(found)
    for family in dict.fromkeys(one.family for one in found.measured):
        for name in scores_of(found, family):
            arm = Arm(found, family, name, arms)
            if not arm.empty:
                key = arm.strongest(arm.settings)
                label = "/".join(part for part in (family, name, "after") if part)
                result = mean_result(name, arm.values(key), "lower", details={"setting": label_of(key)})
                metrics[label] = replace(result, name=label)
    return metrics


def compared(arms: Arms) -> dict[str, MetricResult]:
    """`<family>/<score>/remaining` of every family and score, and `worst/remaining`, the one whose interval reaches
    highest."""
    arms, found = _with_maximum(arms), {}
    families = dict.fromkeys(one.family for one in arms.unlearned.measured)
    for family in families:
        for score in scores_of(arms.unlearned, family):
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
    left_out = [] if original is None else [name for name in families if Arm(original, name, "", arms).all_damaged]
    kept = [name for name in families if name not in left_out]
    if arms.comparator == "holdout":
        # A maximum of more attacks is higher, also where nothing was ever known.
        kept = [name for name in kept if Arm(arms.unlearned, name, "", arms).has_holdout]
    scores = list(dict.fromkeys(score for name in families for score in scores_of(arms.unlearned, name)))

    def joined(result):
        if result is None:
            return None
        best = row_maximum(result, kept, scores, arms.keys, among=kept, left_out=left_out)
        return replace(result, measured=[*result.measured, best])

    return Arms(joined(arms.unlearned), joined(arms.retrained), joined(original))


def _family(arms: Arms, family: str, score: str, name: str) -> MetricResult | None:
    """`remaining` of one family and score; `None` where the score is not defined at all."""
    mine = Arm(arms.unlearned, family, score, arms)
    if mine.empty:
        failed = next(filter(None, map(mine.failed, mine.settings)), None)
        return None if failed is None else _unresolved(name, mine.n, failed, comparator=arms.comparator)
    bound, resolution = (arms.unlearned.settings[key] for key in ("bound", "resolution"))
    details = {"before": mine.before, "seeds": mine.seeds, "comparator": arms.comparator}
    details |= {"provisional": True} if mine.seeded and mine.seeds < PROVISIONAL else {}
    never_knew = mine.has_holdout if arms.comparator == "holdout" else arms.retrained is not None
    never_knew = never_knew and arms.comparator != "none"
    for reason, lacks in ((NO_ORIGINAL, arms.original is None), (NO_COMPARATOR, not never_knew)):
        if lacks:
            chosen = mine.strongest(mine.settings)
            details |= {"after": mine.mean(chosen), "setting": label_of(chosen)}
            return _unresolved(name, mine.n, reason, **details)
    theirs = Arm(arms.original, family, score, arms)
    other = mine if arms.comparator == "holdout" else Arm(arms.retrained, family, score, arms)
    which = "holdout" if arms.comparator == "holdout" else "tested"
    for one in (theirs, other):
        mine.check_alike(one)
    refused = [key for key in theirs.settings if theirs.damaged(key)]
    settings = [key for key in mine.settings if key not in refused]
    details |= {"refused": [label_of(key) for key in refused]} if refused else {}
    details |= mine.told
    least = arms.unlearned.settings.get("fewest_rows", 0)
    if mine.fewest < least:
        return _unresolved(name, mine.n, f"{mine.fewest} tested rows; {least} are required", **details)
    if not settings:
        reason = f"every setting of the attack damages the original model on the {theirs.watched[0]} rows"
        return _unresolved(name, mine.n, reason, idle=True, **details)
    # An attack that did not take place, in whichever model, says nothing.
    failed = {key: why for one in (mine, other, theirs) for key in settings if (why := one.failed(key))}
    settings = [key for key in settings if key not in failed]
    details |= {"failed": {label_of(key): why for key, why in failed.items()}} if failed else {}
    if not settings:
        return _unresolved(name, mine.n, f"the attack had no effect: {next(iter(failed.values()))}", **details)
    u, o = mine.strongest(settings), theirs.strongest(settings)
    r = other.strongest(settings, which)
    details |= {
        "after": mine.mean(u),
        "original_before": theirs.before,
        "original_after": theirs.mean(o),
        f"{arms.comparator}_after": other.mean(r, which),
        "setting": label_of(u),
        "settings": {"original": label_of(o), arms.comparator: label_of(r)},
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


def _point(key: tuple, mine: Arm, theirs: Arm, other: Arm, which: str) -> dict[str, Any]:
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
    # A bound that the worst of the others keeps is not kept by these.
    unknown = [key for key, result in found.items() if result.value is None and not _is_aside(result)]
    undecided = {"open": unknown} if unknown else {}
    if not resolved:
        first = next(iter(found.items()))
        return {"worst/remaining": _unresolved("worst/remaining", first[1].n, first[1].details["reason"],
                                               which=first[0], verdict=UNRESOLVED, budget=budget, **undecided,
                                               **_shown(first[1]))}  # fmt: skip
    name = max(resolved, key=lambda key: (resolved[key].interval or (0, resolved[key].value))[1])
    worst = resolved[name]
    details = {"which": name, "verdict": said, "status": "resolved", "budget": budget, **_shown(worst)} | undecided
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


__all__ = ["NOT_RECOVERED", "SUPPRESSED", "UNRESOLVED", "Arms", "before_metrics", "compared"]
