# SPDX-License-Identifier: Apache-2.0
"""What the numbers say about each unlearned model, in plain words.

Two questions are asked: did it forget (judged against the retrained model, which never saw the forget set, not against
"as low as possible") and did it keep the rest (judged against the target, which is the model before). Two results
differ here when their 95% intervals do not overlap; where they do overlap the sample shows no difference, which is no
proof of equality, and the words say so.
"""

from dataclasses import dataclass, replace

from .naming import UNDEFINED, first_of_kind, format_metric, format_number, metric_in, metric_label, of_kind, value_of
from .privacy.table import privacy_cell, rate_name
from .privacy.view import worst_of


RULE = (
    "How the words are chosen: two results count as different when their 95% intervals do not overlap. Overlapping "
    "intervals mean that this sample shows no difference, not that there is none. Forgetting is judged against the "
    "retrained model, keeping against the target. A broken model also answers nothing, so read the two together."
)
FORGET_METRICS = ("exact_match", "accuracy", "probability", "rouge", "exact_memorization", "extraction_strength")
# Below these shares of the target's value, a loss that the sample resolves is called so.
KEPT_SHARE = 0.9
LOST_SHARE = 0.5
P_DIFFERENT = 0.05

FORGET_PHRASES = {
    "yes": "Forgets",
    "over": "Forgets more than retraining would",
    "lower": "Knows less of the forget set",
    "found": "No longer answers, but attacks find the forget rows",
    "partly": "Forgets only in part",
    "no": "Has not forgotten",
    "unresolved": "Forgetting is unresolved",
}
KEEP_PHRASES = {
    "yes": "keeps the rest",
    "partly": "loses some of the rest",
    "no": "loses most of the rest",
    "unresolved": "keeping is unresolved",
}
TONES = {
    "yes": "good",
    "over": "mixed",
    "lower": "mixed",
    "found": "mixed",
    "partly": "mixed",
    "no": "bad",
    "unresolved": "unknown",
}
SUCCESSES = ("yes", "over", "lower")
PARAPHRASED = "Paraphrased"
UTILITY = "Model utility"
SIGNS = {"good": "✓", "mixed": "~", "bad": "✗", "unknown": "?"}


@dataclass(frozen=True)
class Finding:
    """One question about one model, answered by one metric."""

    status: str
    word: str
    label: str
    metric: str
    value: str
    against: tuple[tuple[str, str], ...]

    @property
    def tone(self) -> str:
        return TONES[self.status]

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]


@dataclass(frozen=True)
class Verdict:
    """All findings about one unlearned model; `forgot` and `kept` decide the headline."""

    model: str
    headline: str
    tone: str
    forgot: Finding
    kept: Finding
    more: tuple[Finding, ...]

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (self.forgot, self.kept, *self.more)


def forget_metric(report: dict) -> str | None:
    """The metric that says how much of the forget set a model knows.

    The first that tells the target from the retrained model: where both score alike, no forgetting can show. Without
    such a metric, or without both models, the first that is defined.
    """
    names = [f"forget/{metric}" for metric in FORGET_METRICS]
    defined = [name for name in names if any(value_of(model, name) is not None for model in report["models"])]
    target, retrained = first_of_kind(report, "target"), first_of_kind(report, "retrained")
    telling = [name for name in defined if _apart(metric_in(target, name), metric_in(retrained, name))]
    return next(iter(telling or defined), None)


def keep_metric(report: dict) -> str | None:
    """The metric on the retain set that answers `kept?`: the one used for forgetting if the target scores above 0."""
    target = first_of_kind(report, "target")
    forget = forget_metric(report)
    preferred = [forget.rsplit("/", 1)[-1]] if forget else []
    names = [f"retain/{metric}" for metric in dict.fromkeys((*preferred, *FORGET_METRICS))] + ["model_utility"]
    defined = [name for name in names if any(value_of(model, name) is not None for model in report["models"])]
    useful = [name for name in defined if value_of(target, name)]
    return next(iter(useful or defined), None)


def utility_metric(report: dict) -> str | None:
    """The metric on the utility axis: model utility where the report has it, else what answers `kept?`."""
    if any(value_of(model, "model_utility") is not None for model in report["models"]):
        return "model_utility"
    return keep_metric(report)


def verdicts(report: dict) -> list[Verdict]:
    """One [`Verdict`] per unlearned model."""
    return [_verdict(report, model) for model in of_kind(report, "unlearned")]


def _verdict(report: dict, model: dict) -> Verdict:
    forget, keep = forget_metric(report), keep_metric(report)
    forgot = _forgot(report, model, forget, "Forgot?")
    kept = _kept(report, model, keep, "Kept?")
    paraphrased = (forget or "").replace("forget/", "forget_paraphrased/")
    more = []
    if metric_in(model, paraphrased):
        more.append(_forgot(report, model, paraphrased, PARAPHRASED))
    if forget != "forget/probability" and metric_in(model, "forget/probability"):
        more.append(_forgot(report, model, "forget/probability", "Answer probability"))
    if metric_in(model, "forget_quality"):
        more.append(_quality(model))
    if keep != "model_utility" and metric_in(model, "model_utility"):
        more.append(_kept(report, model, "model_utility", UTILITY))
    attacked = _attacked(model, first_of_kind(report, "retrained"))
    more += [] if attacked is None else [attacked]
    kept_status = _downgraded(kept, ("yes", "unresolved"), [f for f in more if f.label == UTILITY])
    forgot_status = _downgraded(forgot, SUCCESSES, [f for f in more if f.label == PARAPHRASED])
    if attacked is not None and attacked.status == "no" and forgot_status in SUCCESSES:
        forgot_status = "found"
    if kept_status == "no":
        forgot, more = _unearned(forgot), [f if f.label == UTILITY else _unearned(f) for f in more]
    headline = _headline(forgot_status, kept_status)
    return Verdict(model["name"], headline, _tone(forgot_status, kept_status), forgot, kept, tuple(more))


def _unearned(finding: Finding) -> Finding:
    """A broken model's forgetting: true, but no success."""
    if finding.status not in SUCCESSES:
        return finding
    return replace(finding, status="partly", word="yes, but so is the rest")


def _downgraded(first: Finding, can_fall: tuple[str, ...], others: list[Finding]) -> str:
    """The status of `first`, or `partly` where a second look (paraphrases, model utility) does not bear it out."""
    worse = any(other.status in ("partly", "no") for other in others)
    return "partly" if worse and first.status in can_fall else first.status


def _headline(forgot: str, kept: str) -> str:
    agree = (forgot in SUCCESSES) == (kept == "yes")
    link = ";" if "unresolved" in (forgot, kept) or forgot == "found" else " and" if agree else ", but"
    return f"{FORGET_PHRASES[forgot]}{link} {KEEP_PHRASES[kept]}"


def _tone(forgot: str, kept: str) -> str:
    if "no" in (forgot, kept):
        return "bad"
    if "unresolved" in (forgot, kept):
        return "unknown"
    return "good" if (forgot, kept) == ("yes", "yes") else "mixed"


def _forgot(report: dict, model: dict, name: str | None, question: str) -> Finding:
    target, retrained = (metric_in(first_of_kind(report, kind), name or "") for kind in ("target", "retrained"))
    status, word = _forgot_status(metric_in(model, name or ""), target, retrained)
    return _finding(status, word, question, name, model, target, retrained)


def _forgot_status(mine: dict | None, target: dict | None, retrained: dict | None) -> tuple[str, str]:
    if _undefined(mine) or (_undefined(target) and _undefined(retrained)):
        return "unresolved", "unresolved: nothing to compare"
    if any(metric["interval"] is None for metric in (mine, target, retrained) if not _undefined(metric)):
        return "unresolved", "unresolved: no interval"
    if _undefined(retrained):
        return _forgot_without_retrained(mine, target)
    like_retrained = not _apart(mine, retrained)
    if _undefined(target):
        return ("yes", "like retrained") if like_retrained else ("no", "differs from retrained")
    like_target = not _apart(mine, target)
    if like_retrained:
        return ("unresolved", "unresolved: like both") if like_target else ("yes", "yes, like retrained")
    if like_target:
        return "no", "no, like the target"
    low, high = sorted((target["value"], retrained["value"]))
    if low <= mine["value"] <= high:
        return "partly", "partly, between the two"
    beyond_retrained = (mine["value"] < low) == (retrained["value"] <= target["value"])
    return ("over", "lower than retrained") if beyond_retrained else ("no", "no, more than the target")


def _forgot_without_retrained(mine: dict, target: dict) -> tuple[str, str]:
    if not _apart(mine, target):
        return "no", "no change seen"
    if mine["value"] < target["value"]:
        return "lower", "lower than the target"
    return "no", "no, more than the target"


def _kept(report: dict, model: dict, name: str | None, question: str) -> Finding:
    target, retrained = (metric_in(first_of_kind(report, kind), name or "") for kind in ("target", "retrained"))
    status, word = _kept_status(metric_in(model, name or ""), retrained if _undefined(target) else target)
    return _finding(status, word, question, name, model, target, retrained)


def _kept_status(mine: dict | None, before: dict | None) -> tuple[str, str]:
    if _undefined(mine) or _undefined(before):
        return "unresolved", "unresolved: nothing to compare"
    if before["value"] == 0:
        return "unresolved", "unresolved: nothing was there to keep"
    share = mine["value"] / before["value"]
    if _apart(mine, before) and share < 1:
        if share < LOST_SHARE:
            return "no", "no, most is lost"
        return "partly", "mostly, less than before" if share >= KEPT_SHARE else "partly, less than before"
    if share >= KEPT_SHARE:
        return "yes", "yes, no loss seen" if mine["interval"] and before["interval"] else "yes"
    if None in (mine["interval"], before["interval"]):
        return ("no", "no, most is lost") if share < LOST_SHARE else ("partly", "partly, less than before")
    return "unresolved", "unresolved: intervals overlap"


def _quality(model: dict) -> Finding:
    metric = model["metrics"]["forget_quality"]
    value, n = metric["value"], metric["n"]
    if value is None:
        status, word = "unresolved", "undefined"
    elif value < P_DIFFERENT:
        status, word = "no", f"differs from retrained, n = {n}"
    else:
        status, word = "yes", f"no difference seen, n = {n}"
    shown = UNDEFINED if value is None else f"p = {format_number('forget_quality', value)}"
    return Finding(status, word, "KS test, truth ratio", "forget quality", shown, ())


def _attacked(model: dict, retrained: dict | None) -> Finding | None:
    """Membership inference against the retrained model, at the rate where they differ, else at the largest."""
    both = [one["privacy"] for one in (model, retrained) if one and one.get("privacy")]
    if len(both) < 2:
        return None
    rates = [fpr for fpr in both[0]["settings"]["fprs"] if fpr in both[1]["settings"]["fprs"]]
    rates = [fpr for fpr in rates if not any(_undefined(worst_of(one, fpr)) for one in both)]
    if not rates:
        return None
    apart = [fpr for fpr in rates if _apart(*(worst_of(one, fpr) for one in both))]
    fpr = next(iter(apart), rates[-1])
    more = worst_of(both[0], fpr)["value"] > worst_of(both[1], fpr)["value"]
    value, against = (f"{cell.text} % {cell.interval}" for cell in (privacy_cell(m, fpr) for m in (model, retrained)))
    word = f"{'more' if more else 'less'} than in retrained" if apart else "no difference seen"
    name = f"TPR at {rate_name(fpr)} FPR"
    status = "no" if apart and more else "yes"
    return Finding(status, f"{word}, {against}", f"Attacks: {name}", name, value, (("retrained", against),))


def _finding(
    status: str, word: str, question: str, name: str | None, model: dict, target: dict | None, retrained: dict | None
) -> Finding:
    if name is None:
        return Finding(status, word, question, "", UNDEFINED, ())
    sides = {"target": target, "retrained": retrained}
    against = tuple((side, format_metric(name, metric)) for side, metric in sides.items() if metric is not None)
    return Finding(status, word, question, metric_label(name), format_metric(name, metric_in(model, name)), against)


def _undefined(metric: dict | None) -> bool:
    return metric is None or metric["value"] is None


def _apart(one: dict | None, other: dict | None) -> bool:
    """Whether both are known with intervals that do not overlap."""
    if _undefined(one) or _undefined(other) or None in (one["interval"], other["interval"]):
        return False
    return one["interval"][1] < other["interval"][0] or other["interval"][1] < one["interval"][0]
