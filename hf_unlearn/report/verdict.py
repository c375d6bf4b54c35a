# SPDX-License-Identifier: Apache-2.0
"""What all numbers together say about each unlearned model, in one line.

Three questions: did it forget (like the retrained model, which never saw the forget set, not "as low as possible"),
did it keep the rest (like the target, the model before), and, where that was audited, does it come back. Every metric
that can tell has a say; docs/verdict.md has the rule.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .findings import (
    DIRECTED,
    SIGNS,
    Finding,
    attacked,
    came_back,
    forgot,
    kept,
    quality,
    tells,
    undefined,
)
from .naming import first_of_kind, metric_in, of_kind, set_of, value_of


RULE = (
    "How the words are chosen: every metric that tells the target from the retrained model has a say. It counts as "
    "different from the retrained model where their 95% intervals do not overlap and more than 10 % of the way to the "
    "target lies between them; keeping is judged against the target, and 5 % is little. Overlapping intervals mean "
    "that this sample shows no difference, not that there is none. ✓ only where every check that decides agrees."
)
FORGET_METRICS = ("exact_match", "accuracy", "probability", "rouge", "exact_memorization", "extraction_strength")
FORGET_PHRASES = {
    "yes": "Forgotten like retrained",
    "over": "Over-forgotten: worse than a model that never knew",
    "differs": "Forgotten, but unlike retrained",
    "lower": "Knows less of the forget set (without a retrained model, more cannot be said)",
    "partly": "Forgotten in part",
    "no": "Not forgotten",
    "unresolved": "Forgetting is unresolved",
}
# Where attacks find the rows all the same.
FOUND = "attacks find the forget rows"
FOUND_PHRASES = {"yes": f"Answers like retrained, but {FOUND}", "lower": f"Knows less of the forget set, but {FOUND}"}
KEEP_PHRASES = {
    "yes": "the rest is kept",
    "partly": "some of the rest is lost",
    "no": "most of the rest is lost",
    "unresolved": "keeping is unresolved",
}
BACK_PHRASES = {
    "no": "suppressed: comes back by",
    "yes": "not recovered within budget by",
    "unresolved": "unresolved whether it comes back by",
}
# The first that a model has names it.
WORST_FIRST = ("no", "partly", "over", "differs", "lower", "yes", "unresolved")
DIFFERENT = WORST_FIRST[:4]
UTILITY = "Model utility"
MOST_SHOWN = 4


@dataclass(frozen=True)
class Verdict:
    """All findings about one unlearned model, and the line that they make.

    Args:
        model (`str`), headline (`str`), tone (`str`):
            The model, the line, and `"good"`, `"mixed"`, `"bad"` or `"unknown"`.
        short (`str`):
            The line without numbers, which several runs may share.
        forgot ([`Finding`]), kept ([`Finding`]):
            By the metric that tells target and retrained model apart first, and the same one on what was to be kept.
        more (`tuple[Finding]`):
            Further checks: the usual ones, and of all others those that disagree.
    """

    model: str
    headline: str
    tone: str
    short: str
    forgot: Finding
    kept: Finding
    more: tuple[Finding, ...]

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]

    @property
    def line(self) -> str:
        """`✓ Forgotten like retrained; the rest is kept`."""
        return f"{self.sign} {self.headline}"

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
    telling = [name for name in defined if tells(metric_in(target, name), metric_in(retrained, name))]
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


def returns_line(model: Mapping[str, Any]) -> str | None:
    """What audits of robustness of a model say together, without other audits; `None` without any."""
    back = came_back(model)
    if not back:
        return None
    said = [one.status for one in back.values()]
    tone = "bad" if "no" in said else "good" if "yes" in said else "unknown"
    return f"{SIGNS[tone]} {'; '.join(_returns(back))}"


def _verdict(report: dict, model: dict) -> Verdict:
    forget, keep = forget_metric(report), keep_metric(report)
    first, rest = forgot(report, model, forget, "Forgot?"), kept(report, model, keep, "Kept?")
    forgets = _usual_forget(report, model, forget)
    names = [name for name in _forget_names(report, model) if name not in (forget, *forgets)]
    keeps = [kept(report, model, "model_utility", UTILITY)] if metric_in(model, "model_utility") else []
    other_forgets = [forgot(report, model, name) for name in names]
    other_keeps = [kept(report, model, name) for name in _keep_names(model) if name != keep]
    found, back = attacked(model, first_of_kind(report, "retrained")), came_back(model)
    checks = [*forgets.values(), *other_forgets]
    forgetting = _together(first, checks) if _was_known(report, [forget, *names]) else "unresolved"
    if found is not None and found.status == "over" and forgetting == "yes":
        forgetting = "over"
    keeping = _together(rest, [*keeps, *other_keeps])
    headline, short = (
        _headline(forgetting, most, found, keeping, back) for most in (_most_left([first, *checks]), None)
    )
    tone = _tone(forgetting, found, keeping, back)
    usual = [*forgets.values(), *([] if keep == "model_utility" else keeps)]
    disagree = sorted((one for one in other_forgets if one.status in DIFFERENT), key=_distance, reverse=True)
    disagree += [one for one in other_keeps if one.status in DIFFERENT]
    more = [*usual, *([] if found is None else [found]), *_few(disagree)]
    if keeping == "no":
        first, more = _unearned(first), [one if one in (*keeps, *other_keeps) else _unearned(one) for one in more]
    return Verdict(model["name"], headline, tone, f"{SIGNS[tone]} {short}", first, rest, (*more, *back.values()))


def _usual_forget(report: dict, model: dict, forget: str | None) -> dict[str, Finding]:
    """The further checks of forgetting that are always shown: in other words, by probability, by truth ratios."""
    paraphrased = (forget or "").replace("forget/", "forget_paraphrased/")
    asked = {paraphrased: "Paraphrased", "forget/probability": "Answer probability"}
    found = {
        name: forgot(report, model, name, label)
        for name, label in asked.items()
        if name != forget and metric_in(model, name)
    }
    if metric_in(model, "forget_quality"):
        found["forget_quality"] = quality(report, model)
    return found


def _forget_names(report: dict, model: dict) -> list[str]:
    """All metrics of the forget set that say something of themselves, and that the compared models have too. A
    distance from the retrained model, which it has not from itself, is none of them."""
    others = [one for kind in ("target", "retrained") if (one := first_of_kind(report, kind)) is not None]
    return [
        name
        for name, metric in model["metrics"].items()
        if name.startswith("forget") and "/" in name and metric["direction"] != "none" and others
        and all(not undefined(metric_in(one, name)) for one in others)
    ]  # fmt: skip


def _keep_names(model: dict) -> list[str]:
    """All metrics of other sets that are better higher."""
    return [
        name
        for name, metric in model["metrics"].items()
        if set_of(name) and not name.startswith("forget") and metric["direction"] == "higher"
    ]


def _was_known(report: dict, names: list[str | None]) -> bool:
    """Whether the target knows more than the retrained model; where one of them is missing nobody can say no."""
    both = [first_of_kind(report, kind) for kind in ("target", "retrained")]
    if None in both:
        return True
    directed = [[metric_in(one, name or "") for one in both] for name in names]
    return any(one["direction"] in DIRECTED and tells(one, other) for one, other in directed if one is not None)


def _together(first: Finding, others: Iterable[Finding]) -> str:
    """The status of all checks: the worst that decides. Where only others than the first say no, it is in part."""
    if first.status == "no":
        return "no"
    different = [one.status for one in (first, *others) if one.status in DIFFERENT]
    status = min(different, key=WORST_FIRST.index, default=first.status)
    return "partly" if status == "no" and first.status != "unresolved" else status


def _most_left(checks: Iterable[Finding]) -> Finding | None:
    """Of all checks that see something left the one that sees most."""
    seen = [one for one in checks if one.status in ("partly", "no") and one.left is not None]
    return max(seen, key=_distance, default=None)


def _distance(finding: Finding) -> float:
    return abs(finding.left or 0.0)


def _unearned(finding: Finding) -> Finding:
    """A broken model's forgetting: true, but no success."""
    if finding.tone != "good":
        return finding
    return replace(finding, status="partly", word="yes, but so is the rest")


def _headline(
    forgetting: str, most: Finding | None, found: Finding | None, keeping: str, back: dict[str, Finding]
) -> str:
    phrase = FORGET_PHRASES[forgetting]
    if forgetting == "partly" and most is not None:
        phrase += f": up to {100 * most.left:.0f} % is left ({most.metric})"
    if _is_found(found) and forgetting != "no":
        phrase = FOUND_PHRASES.get(forgetting, f"{phrase}, and {FOUND}")
    return "; ".join([phrase, KEEP_PHRASES[keeping], *_returns(back)])


def _returns(back: dict[str, Finding]) -> list[str]:
    kinds = {said: [kind for kind, one in back.items() if one.status == said] for said in BACK_PHRASES}
    kinds = {said: names for said, names in kinds.items() if names and (said == "no" or not kinds["no"])}
    return [f"{BACK_PHRASES[said]} {', '.join(names)}" for said, names in kinds.items()]


def _tone(forgetting: str, found: Finding | None, keeping: str, back: dict[str, Finding]) -> str:
    if "no" in (forgetting, keeping, *(one.status for one in back.values())):
        return "bad"
    if "unresolved" in (forgetting, keeping):
        return "unknown"
    return "good" if (forgetting, keeping) == ("yes", "yes") and not _is_found(found) else "mixed"


def _is_found(attack: Finding | None) -> bool:
    return attack is not None and attack.status == "no"


def _few(found: list[Finding]) -> list[Finding]:
    if len(found) <= MOST_SHOWN:
        return found
    rest = found[MOST_SHOWN:]
    status = min((one.status for one in rest), key=WORST_FIRST.index)
    return [*found[:MOST_SHOWN], Finding(status, "", f"{len(rest)} more disagree", "", "")]
