# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, kept as JSON, and held against the retrained model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..base import SavedResult
from ..result import MetricResult
from .attack_settings import differences
from .compare import auc_difference, rate_difference


logger = logging.getLogger(__name__)

PRIVACY_VERSION = 1


@dataclass
class Privacy(SavedResult):
    """Results of membership-inference attacks on one model.

    Args:
        metrics (`dict[str, MetricResult]`):
            `"<attack>/auc"`; `"<attack>/tpr@1e-3"` for high scores, with `/lower` and `/both` for the other tails;
            `"<attack>/tpr_zero_fp"`, above all calibration non-members; `"worst/tpr@1e-3"`, the best of all;
            `"<attack>/retain_auc"`, the attack on known members; after `compare` `"<...>/vs_retrained"`.
        scores (`dict[str, dict[str, list]]`):
            By attack, of `forget` and `nonmember` rows; larger for members, `None` where undefined.
        settings (`dict`):
            What the numbers depend on besides the model.
        representations (`dict`, *optional*):
            Where an attack reads representations, a picture of them: see
            [`~hf_unlearn.audit.privacy.representations.picture`].
    """

    kind: ClassVar[str] = "privacy"
    version: ClassVar[int] = PRIVACY_VERSION

    metrics: dict[str, MetricResult]
    scores: dict[str, dict[str, list[float | None]]] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    representations: dict[str, Any] | None = field(default=None, repr=False)

    def compare(self, retrained: "Privacy") -> dict[str, MetricResult]:
        """Differences to the retrained model, added to `metrics` and returned.

        Attacks that only one of both results has are left out. So are those of a result that was saved by an older
        version and does not say how it attacked, with a warning that names them.

        Raises:
            `ValueError`: if that result is of other rows or settings, or an attack was made in another way (`k`,
                statistic, reference model, shadow models, ...).
        """
        same = ("rows", "calibration_share", "seed")
        differs = [name for name in same if self.settings.get(name) != retrained.settings.get(name)]
        if differs:
            raise ValueError(
                f"The retrained model's result differs in {', '.join(differs)}. Evaluate both on the same rows."
            )
        attacks = self._comparable_attacks(retrained)
        found = {}
        for key, mine in self.metrics.items():
            gold = retrained.metrics.get(key)
            if gold is None or mine.value is None or gold.value is None or key.split("/")[0] not in attacks:
                continue
            effect = mine.details.get("design_effect", 1.0)
            if key.endswith("/auc"):
                attack = key.removesuffix("/auc")
                scores = _paired(self.scores[attack], retrained.scores[attack])
                found[f"{key}/vs_retrained"] = auc_difference(*scores, effect)
            elif mine.per_item:
                found[f"{key}/vs_retrained"] = rate_difference(mine.name, mine.per_item, gold.per_item, effect)
        self.metrics.update(found)
        return found

    def _comparable_attacks(self, retrained: "Privacy") -> list[str]:
        """Attacks that both results have, made alike."""
        both = [name for name in self.scores if name in retrained.scores]
        mine, gold = (one.settings.get("attack_settings", {}) for one in (self, retrained))
        told = [name for name in both if name in mine and name in gold]
        if differs := [text for name in told if (text := differences(name, mine, gold))]:
            raise ValueError(
                f"The retrained model was attacked in another way: {'; '.join(differs)}. Evaluate both with the same "
                "attacks."
            )
        if untold := [name for name in both if name not in told]:
            logger.warning(
                "Not compared with the retrained model: %s. A result that an older version saved does not say with "
                "which settings (k, statistic, reference model, ...) it attacked; evaluate that model again.",
                ", ".join(untold),
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        told = super().to_dict()
        if self.representations is None:
            told.pop("representations")
        return told

    @classmethod
    def optional_parts(cls) -> Sequence[str]:
        return ("representations",)

    @staticmethod
    def metric_name(key: str) -> str:
        """`tpr@1e-3` of `loss/tpr@1e-3/lower`."""
        name = key.split("/")[1]
        return f"{name}_vs_retrained" if key.endswith("/vs_retrained") else name


def _paired(mine: dict[str, list], gold: dict[str, list]) -> list[np.ndarray]:
    """Scores of members and non-members under both models, of rows that have both."""
    parts = []
    for name in ("forget", "nonmember"):
        pairs = [(a, b) for a, b in zip(mine[name], gold[name], strict=True) if a is not None and b is not None]
        parts.append(np.array(pairs, dtype=np.float64).reshape(-1, 2).T)
    return [parts[0][0], parts[1][0], parts[0][1], parts[1][1]]
