# SPDX-License-Identifier: Apache-2.0
"""What one model shows under an attack, row by row."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..scoring import TokenScores
from .arguments import SCORES


# Log-probabilities are kept with so many digits: what is told of them has two.
DIGITS = 5


@dataclass
class RowScores:
    """Scores of some rows of a set.

    Args:
        rows (`list[int]` `[n]`): places in the set.
        logps (`list[list[float]]` `[n][tokens]`):
            Natural log-probability of each token of the answer, given the tokens before it; `None` where rows were
            not scored so.
        correct (`list[list[bool]]` `[n][tokens]`): whether it is the most likely token.
        scores (`dict[str, list[float | None]]` `[n]`): other scores, by name.
    """

    rows: list[int]
    logps: list[list[float]] | None = None
    correct: list[list[bool]] | None = None
    scores: dict[str, list[float | None]] = field(default_factory=dict)

    @classmethod
    def of_tokens(cls, rows: Sequence[int], found: Sequence[TokenScores], **scores) -> "RowScores":
        """The rows as [`~hf_unlearn.audit.scoring.score_rows`] found them."""
        # Scores of a model that diverged are undefined, as rows without tokens are.
        found = [score if score.mean_logp is not None else None for score in found]
        logps = [[] if score is None else [round(float(logp), DIGITS) for logp in score.logps] for score in found]
        correct = [[] if score is None else [bool(c) for c in score.correct] for score in found]
        return cls(list(rows), logps, correct, scores)

    @classmethod
    def undefined(cls, rows: Sequence[int]) -> "RowScores":
        """Of a model that gives no finite number."""
        return cls([*rows], [[] for _ in rows], [[] for _ in rows])

    def values(self, score: str, keys: Sequence[Collection[int]] | None = None) -> list[float | None]:
        """One value a row `[n]`.

        Args:
            score (`str`):
                `probability` (`exp` of the mean log-probability a token), `exact_match` (1 if each token is the
                most likely one), `key_probability` (the probability over key tokens alone), `known` (1 if each key
                token is the most likely one), or a name in `scores`. A row without key tokens has none of the two.
            keys (`Sequence[Collection[int]]`, *optional*):
                Places of the key tokens in the answer, for every row of the set; see
                [`~hf_unlearn.audit.robustness.keys.key_tokens`].
        """
        if score in self.scores:
            return list(self.scores[score])
        if self.logps is None or score not in SCORES:
            return [None] * len(self.rows)
        if score == "exact_match":
            return [float(all(row)) if row else None for row in self.correct]
        if score == "probability":
            return [_probability(row) for row in self.logps]
        if keys is None:
            return [None] * len(self.rows)
        found = self.correct if score == "known" else self.logps
        chosen = [keys[i] for i in self.rows]
        found = [[row[t] for t in key if t < len(row)] for row, key in zip(found, chosen, strict=True)]
        return [(float(all(row)) if row else None) if score == "known" else _probability(row) for row in found]

    def some(self, rows: Collection[int]) -> "RowScores":
        """The same of these rows of the set, in their order."""
        place = {row: i for i, row in enumerate(self.rows)}
        at = [place[row] for row in rows]

        def pick(values):
            return None if values is None else [values[i] for i in at]

        return RowScores(
            [self.rows[i] for i in at],
            pick(self.logps),
            pick(self.correct),
            {name: pick(values) for name, values in self.scores.items()},
        )


@dataclass
class Measured:
    """A model under one setting of an attack.

    Args:
        setting (`str`):
            In words, such as `"learning_rate 0.0005"`; the strongest setting is chosen in every model by itself.
        tested ([`RowScores`]):
            Forget rows that were not shown to the attacker.
        family (`str`):
            Results of different families are reported apart, such as formats of quantisation; may be empty.
        seed (`int`, *optional*): of the attack.
        step (`int`, *optional*): steps that the attack took.
        holdout, retain ([`RowScores`], *optional*): rows that no model saw, and rows to be kept.
        more (`dict`): what else is told of it.
    """

    setting: str
    tested: RowScores
    family: str = ""
    seed: int | None = None
    step: int | None = None
    holdout: RowScores | None = None
    retain: RowScores | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        """What seeds of one setting have in common."""
        return self.family, self.setting, self.step

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Measured":
        """What `to_dict` made."""
        parts = {name: saved[name] and RowScores(**saved[name]) for name in ("tested", "holdout", "retain")}
        return cls(**{**saved, **parts})


def _probability(logps: Sequence[float]) -> float | None:
    return math.exp(math.fsum(logps) / len(logps)) if len(logps) else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of what is defined; `None` of nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
