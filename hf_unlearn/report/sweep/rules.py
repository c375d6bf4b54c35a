# SPDX-License-Identifier: Apache-2.0
"""Which of a method's results stands in the table: one rule, said in advance, the same for every method."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


NUMBER = r"(\d+(?:\.\d*)?(?:e-?\d+)?)"
FORMS = {
    "last": re.compile("last"),
    "first": re.compile(rf"first forget <= {NUMBER} \* target"),
    "best": re.compile(rf"best utility s\.t\. forget <= {NUMBER}"),
    "kept": re.compile(rf"best forget s\.t\. utility >= target - {NUMBER}"),
    "pareto": re.compile("pareto"),
}
GRAMMAR = (
    "`last`, `first forget <= X * target`, `best utility s.t. forget <= X`, `best forget s.t. utility >= target - X` "
    "or `pareto`"
)


@dataclass(frozen=True)
class Rule:
    """A selection rule.

    Args:
        kind (`str`): `last`, `first`, `best`, `kept` or `pareto`.
        bound (`float`, *optional*): X of `first`, `best` and `kept`.
        forget, utility (`str`, *optional*): metrics that it reads; by default those of the report.
    """

    kind: str
    bound: float | None = None
    forget: str | None = None
    utility: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def told(self, forget: str | None, utility: str | None) -> str:
        """The rule in words, as every table prints it."""
        return {
            "last": "last: every run as it ended",
            "first": f"first: of every run the first evaluation with {forget} <= {self.bound} times the target's",
            "best": (
                f"best: of every method the setting and evaluation with the largest {utility} among those with "
                f"{forget} <= {self.bound}"
            ),
            "kept": (
                f"best: of every method the setting and evaluation with the best {forget} (the nearest to the "
                f"retrained model's, of a test's p-value the largest) among those with {utility} at least the "
                f"target's less {self.bound}"
            ),
            "pareto": (
                f"pareto: of every method the settings and evaluations that no other of it beats in both {forget} "
                f"(lower) and {utility} (higher)"
            ),
        }[self.kind]


def read_rule(given: Any, where: str) -> Rule:
    """A rule from `select:` of a sweep file: a text, or `rule`, `forget` and `utility`.

    Raises:
        `ValueError`: with the grammar.
    """
    given = {"rule": given} if isinstance(given, str) else given
    unknown = set(given) - {"rule", "forget", "utility"}
    if unknown or not isinstance(given.get("rule"), str):
        raise ValueError(f"{where}: select: {given!r}; give {GRAMMAR}, or `rule`, `forget` and `utility`.")
    text = " ".join(given["rule"].split())
    for kind, form in FORMS.items():
        match = form.fullmatch(text)
        if match:
            bound = float(match[1]) if form.groups else None
            return Rule(kind, bound, given.get("forget"), given.get("utility"))
    raise ValueError(f"{where}: select: {given['rule']!r} is no rule. Give {GRAMMAR}.")


@dataclass
class Point:
    """A run at one evaluation.

    Args:
        run (`dict`): of the sweep.
        step (`int`, *optional*): of training; `None` is the end.
        values (`dict`): metric to value, `None` where undefined.
    """

    run: dict[str, Any]
    step: int | None
    values: dict[str, float | None]

    @property
    def candidate(self) -> tuple[str, str, int | None]:
        """What has one value per seed and target: a method's setting at a step."""
        return self.run["label"], self.run["variant"], self.step


@dataclass
class Selection:
    """What a rule chose.

    Args:
        points (`list[Point]`): chosen ones.
        unmet (`list[str]`): runs or methods in which nothing meets the rule.
    """

    points: list[Point]
    unmet: list[str]


def select(
    rule: Rule,
    points: list[Point],
    forget: str | None,
    utility: str | None,
    target_values: Callable[[dict], float | None],
    tuning_seed: int | None = None,
    losses: Callable[["Point"], tuple[float | None, float | None]] | None = None,
) -> Selection:
    """Applies a rule.

    `best`, `kept` and `pareto` choose a setting by its mean over targets and seeds: those of the tuning seed if there
    is one, which then count in no mean, else of all.

    Args:
        rule ([`Rule`]): the same for all methods.
        points (`list[Point]`): of all runs, the ends and what was evaluated on the way.
        forget, utility (`str`): metrics.
        target_values (`Callable`): of a run, the target model's forget metric.
        tuning_seed (`int`, *optional*): see above.
        losses (`Callable`): of a point, how far its forget metric is from the retrained model's, and how much less
            than the target's its utility is; `kept` reads it.

    Raises:
        `ValueError`: if the rule cannot be applied to these points.
    """
    if rule.kind == "last":
        return Selection([point for point in points if point.step is None], [])
    needed = [forget] if rule.kind == "first" else [forget, utility]
    if None in needed:
        raise ValueError(f"select: {rule.kind!r} needs metrics of forgetting and utility; the runs have none.")
    if rule.kind == "first":
        return _first(rule.bound, points, forget, target_values)
    read = losses if rule.kind == "kept" else lambda point: (point.values.get(forget), point.values.get(utility))
    means = _candidate_means(points, read, tuning_seed)
    if rule.kind == "pareto" and all(len(found) < 2 for found in means.values()):
        raise ValueError(
            "select: 'pareto' chooses among several points of a method, and every method has one. Give a `grid`, or "
            "evaluate on the way (`audit_during_training: true`)."
        )
    chosen, unmet = set(), []
    for label, found in means.items():
        best = CHOICES[rule.kind](found, rule.bound)
        if not best:
            unmet.append(label)
            # What a method does where it cannot keep the rest is a result too.
            best = _least_lost(found) if rule.kind == "kept" else []
        chosen |= {(label, *candidate) for candidate in best}
    return Selection([point for point in points if point.candidate in chosen], unmet)


def _first(bound: float, points: list[Point], forget: str, target_values: Callable) -> Selection:
    runs: dict[str, list[Point]] = {}
    for point in points:
        runs.setdefault(point.run["name"], []).append(point)
    chosen, unmet = [], []
    for name, own in runs.items():
        base = target_values(own[0].run)
        ordered = sorted(own, key=lambda point: float("inf") if point.step is None else point.step)
        met = (p for p in ordered if base is not None and _at_most(p.values.get(forget), bound * base))
        point = next(met, None)
        if point is None:
            unmet.append(name)
        else:
            chosen.append(point)
    return Selection(chosen, unmet)


def _candidate_means(points, read, tuning_seed) -> dict[str, dict[tuple, tuple[float, float]]]:
    """Of every method and candidate the means of both numbers that are read, where they are defined in every run."""
    runs: dict[str, dict[tuple, list[tuple]]] = {}
    for point in points:
        if tuning_seed is not None and point.run["seed"] != tuning_seed:
            continue
        label, *candidate = point.candidate
        runs.setdefault(label, {}).setdefault(tuple(candidate), []).append(read(point))
    means: dict[str, dict[tuple, tuple[float, float]]] = {}
    for label, found in runs.items():
        # Over fewer runs than others have, a mean is of something else.
        full = max(len(pairs) for pairs in found.values())
        means[label] = {
            candidate: tuple(sum(side) / full for side in zip(*pairs, strict=True))
            for candidate, pairs in found.items()
            if len(pairs) == full and all(None not in pair for pair in pairs)
        }
    return means


def _best(found: dict[tuple, tuple[float, float]], bound: float) -> list[tuple]:
    allowed = {candidate: utility for candidate, (forget, utility) in found.items() if forget <= bound}
    return [max(allowed, key=allowed.get)] if allowed else []


def _kept(found: dict[tuple, tuple[float, float]], bound: float) -> list[tuple]:
    # In floating point 0.86 - 0.84 is more than 0.02.
    allowed = {candidate: distance for candidate, (distance, lost) in found.items() if lost <= bound + 1e-9}
    return [min(allowed, key=allowed.get)] if allowed else []


def _least_lost(found: dict[tuple, tuple[float, float]]) -> list[tuple]:
    return [min(found, key=lambda candidate: found[candidate][1])] if found else []


def _front(found: dict[tuple, tuple[float, float]], bound: float | None = None) -> list[tuple]:
    return [
        candidate for candidate, point in found.items() if not any(beats(other, point) for other in found.values())
    ]


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a point (forget, utility) is as good as another in both and better in one."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def _at_most(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


CHOICES = {"best": _best, "kept": _kept, "pareto": _front}
