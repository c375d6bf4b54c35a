# SPDX-License-Identifier: Apache-2.0
"""The models of a comparison, and what each shows of one score by setting."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .keys import key_tokens
from .measured import Measured, RowScores, mean_of


# An attack that leaves the original model less than this share of what it knew damages it.
DAMAGING = 0.95


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


class Arm:
    """One model's values of a score, by setting; those of several seeds one after the other."""

    def __init__(self, result, family: str, score: str, arms: Arms):
        self.result, self.family, self.score, self.arms = result, family, score, arms
        found = by_setting(one for one in result.measured if one.family == family)
        self.settings = found
        self.seeds = max((len(seeds) for seeds in found.values()), default=0)
        self.seeded = any(one.seed is not None for seeds in found.values() for one in seeds)
        self.n = max((len(self.values(key)) for key in found), default=0)

    @property
    def fewest(self) -> int:
        """Rows that are tested at least, in one run of the attack."""
        return min((len(one.tested.rows) for found in self.settings.values() for one in found), default=0)

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
        return mean_of(self.values(key, which))

    def strongest(self, settings: Sequence[tuple], which: str = "tested") -> tuple:
        """The setting that brings most out of this model. A maximum of one model is compared with a maximum of the
        other, never with a fixed setting of it."""
        means = {key: self.mean(key, which) for key in settings}
        return max(settings, key=lambda key: -1.0 if means[key] is None else means[key])

    def check_alike(self, other: "Arm") -> None:
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
                f"Two models were not attacked alike: {label_of(differs)} was measured on other rows, with other "
                "seeds, or in one of them only. Audit both with the same settings."
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
        return next((mean_of(self.before_rows(key)) for key in self.settings), None)

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
        before, after = mean_of(judge.before_rows(key, which)), judge.mean(key, which)
        return before is not None and after is not None and after < share * before

    @cached_property
    def _judge(self) -> "Arm":
        """The first score that there is."""
        arms = (self._of(score) for score in scores_of(self.result, self.family))
        return next((arm for arm in arms if not arm.empty), self)

    def _of(self, score: str) -> "Arm":
        return Arm(self.result, self.family, score, self.arms)

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


def by_setting(measured) -> dict[tuple, list[Measured]]:
    found = defaultdict(list)
    for one in measured:
        found[one.key].append(one)
    return dict(found)


def scores_of(found, family: str | None = None) -> list[str]:
    """Scores of a result: those that are asked for where tokens are scored, and the attack's own."""
    measured = [one for one in found.measured if family in (None, one.family)]
    own = dict.fromkeys(name for one in measured for name in one.tested.scores)
    asked = found.settings["scores"] if any(one.tested.logps is not None for one in measured) else []
    return [*asked, *own]


def label_of(key: tuple) -> str:
    return ", ".join([key[1], *([f"step {key[2]}"] if key[2] is not None else [])])
