# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, kept as JSON, and held against the retrained model."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...files import read_json, write_json
from ..result import MetricResult, check_saved
from .attack_settings import differences
from .compare import auc_difference, rate_difference


logger = logging.getLogger(__name__)

PRIVACY_VERSION = 1


@dataclass
class Privacy:
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

    metrics: dict[str, MetricResult]
    scores: dict[str, dict[str, list[float | None]]] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    representations: dict[str, Any] | None = field(default=None, repr=False)

    def values(self) -> dict[str, float | None]:
        """The bare numbers; `None` for what is unresolved or undefined."""
        return {name: result.value for name, result in self.metrics.items()}

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
        told = {
            "privacy_version": PRIVACY_VERSION,
            "settings": self.settings,
            "metrics": {name: result.to_dict(per_item=True) for name, result in self.metrics.items()},
            "scores": self.scores,
        }
        return told if self.representations is None else {**told, "representations": self.representations}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Privacy":
        """The result that `to_dict` wrote."""
        check_saved(saved, "privacy", PRIVACY_VERSION, ("metrics", "scores", "settings"))
        metrics = {}
        for key, metric in saved["metrics"].items():
            metrics[key] = MetricResult.from_dict(_metric_name(key), metric)
        return cls(metrics, saved["scores"], saved["settings"], saved.get("representations"))

    def save(self, path: str | Path) -> Path:
        """Writes the result to a JSON file."""
        return write_json(path, self.to_dict(), allow_nan=False)

    @classmethod
    def load(cls, path: str | Path) -> "Privacy":
        """Reads a result that `save` wrote."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"No privacy result at {path}: give the JSON file that `Privacy.save` wrote.")
        return cls.from_dict(read_json(path, "Evaluate the checkpoint again."))


def _metric_name(key: str) -> str:
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
