# SPDX-License-Identifier: Apache-2.0
"""One question about one model, answered by one metric: how far it is from the retrained model and from the target."""

from dataclasses import dataclass
from typing import Any

from .naming import (
    UNDEFINED,
    first_of_kind,
    format_metric,
    format_number,
    full_label,
    metric_in,
    metric_label,
    percent,
)
from .privacy.table import rate_name
from .privacy.view import worst_of
from .sections import AUDITS_KEY


# Of the way from the retrained model to the target: up to here a difference is too small to matter. The shipped gates
# have the same bounds.
LITTLE = 0.1
# Of the target's value: from here on a loss is too small to matter.
KEPT_SHARE = 0.95
# An interval that reaches over half way (between the two models; of the target's value) does not decide.
HALF = 0.5
P_DIFFERENT = 0.05
# A KS test decides only where it tells the target from the retrained model as surely as this.
P_SURE = 1e-3
DIRECTED = ("lower", "higher")
WORST = "worst/remaining"
HOLDOUT = "holdout"
SUPPRESSED, NOT_RECOVERED = "suppressed", "not recovered within budget"

TONES = {
    "yes": "good",
    "over": "mixed",
    "differs": "mixed",
    "lower": "mixed",
    "partly": "mixed",
    "no": "bad",
    "unresolved": "unknown",
}
SIGNS = {"good": "✓", "mixed": "~", "bad": "✗", "unknown": "?"}


@dataclass(frozen=True)
class Finding:
    """One question about one model, answered by one metric.

    Args:
        status (`str`):
            `"yes"` (like the retrained model; kept), `"over"` (knows less than the retrained model), `"differs"` (from
            the retrained model, in no direction), `"lower"` (than the target; there is no retrained model),
            `"partly"`, `"no"` or `"unresolved"`.
        word (`str`): the status in words.
        label (`str`), metric (`str`), value (`str`): the question, the metric, its value with its interval.
        against (`tuple`): other models' values, as pairs of kind and value.
        left (`float`, *optional*):
            Of a metric of the forget set, where it lies between the retrained model (0) and the target (1).
    """

    status: str
    word: str
    label: str
    metric: str
    value: str
    against: tuple[tuple[str, str], ...] = ()
    left: float | None = None

    @property
    def tone(self) -> str:
        return TONES[self.status]

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]


def apart(one: dict | None, other: dict | None) -> bool:
    """Whether both are known with intervals that do not overlap."""
    if undefined(one) or undefined(other) or None in (one["interval"], other["interval"]):
        return False
    return one["interval"][1] < other["interval"][0] or other["interval"][1] < one["interval"][0]


def undefined(metric: dict | None) -> bool:
    return metric is None or metric["value"] is None


# Forgetting


def forgot(report: dict, model: dict, name: str | None, label: str | None = None) -> Finding:
    """Whether one metric of the forget set is as in the retrained model."""
    target, retrained = _others(report, name)
    mine = metric_in(model, name or "")
    status, word = forgot_status(mine, target, retrained)
    holdout = (name or "").replace("forget/", f"{HOLDOUT}/")
    if status == "lower" and holdout.startswith(f"{HOLDOUT}/") and not undefined(metric_in(model, holdout)):
        # They may be harder or easier: nothing in a report tells that from what is left.
        word += "; holdout rows are other rows, and stand in for no retrained model"
    left = None if undefined(mine) or not tells(target, retrained) else share_left(mine["value"], target, retrained)
    return _finding(status, word, label, name, model, target, retrained, left)


def tells(target: dict | None, retrained: dict | None) -> bool:
    """Whether a metric tells the target from the retrained model, and the target knows more by it."""
    if not apart(target, retrained):
        return False
    return target["direction"] not in DIRECTED or not _less(target, retrained)


def forgot_status(mine: dict | None, target: dict | None, retrained: dict | None) -> tuple[str, str]:
    """Status and words of one metric of the forget set in three models; `None` for a model that there is not."""
    if undefined(mine) or (undefined(target) and undefined(retrained)):
        return "unresolved", "unresolved: nothing to compare"
    known = [metric for metric in (mine, target, retrained) if not undefined(metric)]
    if any(metric["interval"] is None for metric in known):
        return "unresolved", "unresolved: no interval"
    if undefined(retrained):
        return _without_retrained(mine, target)
    if undefined(target):
        return _beside(mine, retrained) if apart(mine, retrained) else ("yes", "like retrained")
    if not tells(target, retrained):
        if apart(target, retrained):
            return "unresolved", "unresolved: nothing was there to forget"
        if apart(mine, target) and apart(mine, retrained):
            return _beside(mine, retrained)
        return "unresolved", "unresolved: like both"
    left = share_left(mine["value"], target, retrained)
    if abs(left) > LITTLE and apart(mine, retrained):
        if not apart(mine, target):
            return "no", "no, like the target"
        if left > 1:
            return _beside(mine, target, "the target")
        return ("partly", f"in part, {100 * left:.0f} % is left") if left > 0 else _beyond(mine, left)
    if not apart(mine, target):
        return "unresolved", "unresolved: like both"
    if max(share_left(end, target, retrained) for end in mine["interval"]) > HALF:
        return "unresolved", "unresolved: the interval reaches over half way to the target"
    return "yes", "yes, like retrained"


def share_left(value: float, target: dict, retrained: dict) -> float:
    """Where a value lies between the retrained model's (0) and the target's (1)."""
    return (value - retrained["value"]) / (target["value"] - retrained["value"])


def _without_retrained(mine: dict, target: dict) -> tuple[str, str]:
    if not apart(mine, target):
        return "no", "no change seen"
    if mine["direction"] not in DIRECTED:
        return "differs", "unlike the target"
    return ("lower", "less than the target") if _less(mine, target) else ("no", "no, more than the target")


def _less(mine: dict, other: dict) -> bool:
    """Whether a metric of the forget set, which has a direction, says that less is known than in another model."""
    return (mine["value"] < other["value"]) == (mine["direction"] == "lower")


def _beside(mine: dict, other: dict, who: str = "retrained") -> tuple[str, str]:
    """Of a metric that is apart from another model's, with no third one to measure the distance by."""
    if mine["direction"] not in DIRECTED:
        return "differs", f"unlike {who}"
    return ("over", f"knows less than {who}") if _less(mine, other) else ("no", f"no, more than {who}")


def _beyond(mine: dict, left: float) -> tuple[str, str]:
    told = "knows less than" if mine["direction"] in DIRECTED else "unlike"
    return "over", f"{told} retrained, {-100 * left:.0f} % of the way beyond"


def quality(report: dict, model: dict) -> Finding:
    """The KS test, where it can tell: at few rows even the target is hardly told from the retrained model."""
    metric = model["metrics"]["forget_quality"]
    before = metric_in(first_of_kind(report, "target"), "forget_quality")
    p, n, limit = metric["value"], metric["n"], None if undefined(before) else before["value"]
    if p is None:
        status, word = "unresolved", "undefined"
    elif p < P_DIFFERENT and (limit is None or min(p, limit) < P_SURE):
        status, word = "differs", f"differs from retrained, n = {n}"
    elif limit is not None and limit >= P_SURE:
        told = format_number("forget_quality", limit)
        status, word = "unresolved", f"cannot tell at n = {n}: the target itself has p = {told}"
    else:
        status, word = "yes", f"no difference seen, n = {n}"
    shown = UNDEFINED if p is None else f"p = {format_number('forget_quality', p)}"
    return Finding(status, word, "KS test, truth ratio", "forget quality", shown)


# Keeping


def kept(report: dict, model: dict, name: str | None, label: str | None = None) -> Finding:
    """Whether one metric of what was to be kept is as in the target (without one, as in the retrained model)."""
    target, retrained = _others(report, name)
    mine = metric_in(model, name or "")
    status, word = kept_status(mine, retrained if undefined(target) else target)
    if status == "unresolved" and not undefined(mine):
        word += _ruled_by(mine)
    return _finding(status, word, label, name, model, target, retrained)


def kept_status(mine: dict | None, before: dict | None) -> tuple[str, str]:
    """Status and words of one metric of what was to be kept, now and before."""
    if undefined(mine) or undefined(before):
        return "unresolved", "unresolved: nothing to compare"
    if before["value"] <= 0:
        return "unresolved", "unresolved: nothing was there to keep"
    share, sure = mine["value"] / before["value"], None not in (mine["interval"], before["interval"])
    if share < KEPT_SHARE and (apart(mine, before) or not sure):
        return ("no", "no, most is lost") if share < HALF else ("partly", "partly, less than before")
    if not sure:
        return "unresolved", "unresolved: no interval"
    if before["interval"][0] < HALF * before["value"] or mine["interval"][0] < HALF * before["value"]:
        return "unresolved", "unresolved: the interval reaches below half of what was there"
    if share < KEPT_SHARE:
        return "unresolved", "unresolved: intervals overlap"
    return "yes", "yes, little is lost" if apart(mine, before) and share < 1 else "yes, no loss seen"


def _ruled_by(metric: dict) -> str:
    """The term of a harmonic mean that rules it, if one does."""
    terms = (metric.get("details") or {}).get("terms") or {}
    known = {name: value for name, value in terms.items() if value is not None}
    least = min(known, key=known.get, default=None)
    if least is None or len(known) < 2 or known[least] > metric["value"] * HALF:
        return ""
    return f"; {full_label(least)} is {known[least]:.2g} and rules the harmonic mean"


# Attacks


def attacked(model: dict, retrained: dict | None) -> Finding | None:
    """Membership inference against the retrained model, at the rate where they differ, else at the largest."""
    both = [one["privacy"] for one in (model, retrained) if one and one.get("privacy")]
    if len(both) < 2:
        return None
    rates = [fpr for fpr in both[0]["settings"]["fprs"] if fpr in both[1]["settings"]["fprs"]]
    rates = [fpr for fpr in rates if not any(undefined(worst_of(one, fpr)) for one in both)]
    if not rates:
        return None
    differ = [fpr for fpr in rates if apart(*(worst_of(one, fpr) for one in both))]
    fpr = next(iter(differ), rates[-1])
    more = worst_of(both[0], fpr)["value"] > worst_of(both[1], fpr)["value"]
    value, against = (_rate(worst_of(one, fpr)) for one in both)
    word = f"{'more' if more else 'less'} than in retrained" if differ else "no difference seen"
    name = f"TPR at {rate_name(fpr)} FPR"
    status = "yes" if not differ else "no" if more else "over"
    return Finding(status, f"{word}, {against}", f"Attacks: {name}", name, value, (("retrained", against),))


def _rate(metric: dict) -> str:
    return f"{percent(metric['value'])} % [{', '.join(map(percent, metric['interval']))}]"


def came_back(model: dict) -> dict[str, Finding]:
    """What every audit of robustness says, by kind: those are the audits that know how much is left at worst."""
    audits: dict[str, Any] = model.get(AUDITS_KEY) or {}
    found = {kind: (audit.get("metrics") or {}).get(WORST) for kind, audit in audits.items()}
    return {kind: _came_back(kind, metric) for kind, metric in found.items() if metric is not None}


def _came_back(kind: str, metric: dict) -> Finding:
    details = metric.get("details") or {}
    said = details.get("verdict", "unresolved")
    status = {SUPPRESSED: "no", NOT_RECOVERED: "yes"}.get(said, "unresolved")
    word = ": ".join(filter(None, (said, details.get("reason"))))
    return Finding(status, word, f"Came back? {kind}", "remaining", format_metric(WORST, metric))


def _others(report: dict, name: str | None) -> tuple[dict | None, dict | None]:
    return tuple(metric_in(first_of_kind(report, kind), name or "") for kind in ("target", "retrained"))


def _finding(
    status: str,
    word: str,
    label: str | None,
    name: str | None,
    model: dict,
    target: dict | None,
    retrained: dict | None,
    left: float | None = None,
) -> Finding:
    if name is None:
        return Finding(status, word, label or "", "", UNDEFINED)
    sides = {"target": target, "retrained": retrained}
    against = tuple((side, format_metric(name, metric)) for side, metric in sides.items() if metric is not None)
    shown = format_metric(name, metric_in(model, name))
    return Finding(status, word, label or full_label(name), metric_label(name), shown, against, left)
