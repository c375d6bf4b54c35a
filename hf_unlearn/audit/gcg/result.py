# SPDX-License-Identifier: Apache-2.0
"""What searched prefixes bring back: more than random ones, and more than in a model that never knew?"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..result import MetricResult, proportion_result
from ..robustness.measured import RowScores
from ..robustness.recovery import UNRESOLVED
from ..robustness.result import Robustness
from ..scan.verdict import rank_p, sign_p


RESTORED = "restored"


@dataclass
class Prefixed(Robustness):
    """As [`Robustness`], with the metric `restored`: the share of the tested rows that are answered behind the prefix
    of some seed, each token of the answer being the most likely one, and are not answered without.

    In its details, `p_random`: the rank of the prefixes among random ones of their lengths, by rows that come back
    (of several seeds summed, ties against them); after `compare`, `p_retrained`: of a one-sided exact sign test over
    the rows that come back here or in the retrained model but not in both, behind the prefix searched in each.
    """

    kind: ClassVar[str] = "gcg"

    def __post_init__(self):
        if self.metrics:
            return
        super().__post_init__()
        if self.measured:
            self.metrics[RESTORED] = _restored(self)

    def compare(self, retrained=None, original=None) -> dict[str, MetricResult]:
        found = super().compare(retrained, original)
        mine = self.metrics.get(RESTORED)
        if mine is None:
            return found
        if retrained is not None and mine.value is not None:
            won, theirs = (np.array([*rows_back(one).values()], dtype=bool) for one in (self, retrained))
            mine.details.update({"p_retrained": sign_p(won, theirs), "retrained": float(theirs.mean())})
        if "worst/remaining" in found and mine.value is not None:
            found["worst/remaining"].details["says"] = _words(mine)
        return found | {RESTORED: mine}


def came_back(tested: RowScores, before: RowScores) -> list[bool]:
    """Whether each row is answered now and was not before; an undefined row is not."""
    now, was = tested.values("exact_match"), before.some(tested.rows).values("exact_match")
    return [a == 1 and b == 0 for a, b in zip(now, was, strict=True)]


def rows_back(result: Robustness) -> dict[int, bool]:
    """Whether the prefix of some seed brings back each row that was tested, by row."""
    found: dict[int, bool] = {}
    for one in result.measured:
        for row, back in zip(one.tested.rows, came_back(one.tested, result.before.tested), strict=True):
            found[row] = found.get(row, False) or back
    return dict(sorted(found.items()))


def _restored(result: Robustness) -> MetricResult:
    back = rows_back(result)
    counts = [sum(came_back(one.tested, result.before.tested)) for one in result.measured]
    chance = np.sum([one.more["random"]["restored"] for one in result.measured], axis=0)
    details = {
        "prefixes": [
            {"seed": one.seed, "prefix": one.more["prefix"], "restored": count, "of": len(one.tested.rows)}
            for one, count in zip(result.measured, counts, strict=True)
        ],
        "p_random": rank_p(sum(counts), chance),
        "random": {"prefixes": len(chance), "mean": float(chance.mean()), "max": int(chance.max())},
    }
    found = proportion_result(RESTORED, [float(one) for one in back.values()], "lower", details=details)
    tested, least = min(len(one.tested.rows) for one in result.measured), result.settings["fewest_rows"]
    if tested < least:
        reason = f"{tested} tested rows; {least} are required"
        return replace(found, value=None, interval=None, details={**details, "status": UNRESOLVED, "reason": reason})
    return found


def _words(restored: MetricResult) -> str:
    details, n = restored.details, restored.n
    against = [f"p = {details['p_random']:.2g} against random prefixes"]
    if "p_retrained" in details:
        against.append(f"p = {details['p_retrained']:.2g} against the retrained model")
    best = max(details["prefixes"], key=lambda one: one["restored"])
    return f"{round(restored.value * n)} of {n} tested rows back ({', '.join(against)}), behind “{best['prefix']}”"
