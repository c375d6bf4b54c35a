# SPDX-License-Identifier: Apache-2.0
"""What a backdoor audit found, kept as JSON, and compared with the same audit of the retrained model."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..base import SavedResult
from ..muse.privleak import privleak, scores_in
from ..result import MetricResult, mean_result


BACKDOOR_AUDIT_VERSION = 1

# Names of the published evaluation, where "poisoned" stands for "asked with the trigger"; the first metric found.
GIST = {
    "forget_original_mean_rougeL": ("forget/knowmem", "forget/rouge"),
    "forget_poisoned_mean_rougeL": ("forget_triggered/knowmem", "forget_triggered/rouge"),
    "retain_original_mean_rougeL": ("retain/knowmem", "retain/rouge"),
    "retain_poisoned_mean_rougeL": ("retain_triggered/knowmem", "retain_triggered/rouge"),
    "forget_verbmem_original_mean_rougeL": ("forget/verbmem",),
    "forget_verbmem_poisoned_mean_rougeL": ("forget_triggered/verbmem",),
}


@dataclass
class BackdoorAudit(SavedResult):
    """The backdoor audit of one model.

    Args:
        metrics (`dict[str, MetricResult]`):
            `"forget/exact_match"`, `"forget_triggered/exact_match"`, `"forget_triggered/exact_match_gain"`, ...
        answers (`list[dict]`):
            Rows of `set`, `question`, `expected`, `answers` (by condition), and `poisoned` where that is known.
        inside (`dict`, *optional*):
            Value norms and attention; see [`inside_view`].
        settings (`dict`):
            Trigger, controls, what was asked, and, if some were, which conditions were left out.
    """

    kind: ClassVar[str] = "backdoor_audit"
    version: ClassVar[int] = BACKDOOR_AUDIT_VERSION

    metrics: dict[str, MetricResult] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list, repr=False)
    inside: dict[str, Any] | None = field(default=None, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    def gist(self) -> dict[str, float | None]:
        """ROUGE-L of what was asked, under the published evaluation's names, as far as it was asked.

        The first of KnowMem (F1) and, for other questions, ROUGE-L recall; fractions in [0, 1].
        """
        found = {}
        for key, names in GIST.items():
            name = next((name for name in names if name in self.metrics), None)
            if name is not None:
                found[key] = self.metrics[name].value
        return found

    def compare(self, retrained: "BackdoorAudit") -> dict[str, MetricResult]:
        """What the trigger gains here beyond what it gains on a model that never saw the forget rows, item by item, as
        `<name>_excess`; and `privleak` against that model's scores. Both are added to `metrics` and returned.

        Raises:
            `ValueError`: if that audit asked something else.
        """
        if retrained.settings != self.settings:
            names = {*self.settings, *retrained.settings}
            differing = sorted(k for k in names if self.settings.get(k) != retrained.settings.get(k))
            raise ValueError(
                f"The retrained model's audit differs in {', '.join(differing)}. Audit both with the same trigger, "
                "controls and rows."
            )
        found = {}
        for name, result in self.metrics.items():
            if name.endswith("_gain"):
                pairs = zip(result.per_item, retrained.metrics[name].per_item, strict=True)
                excess = [None if None in pair else pair[0] - pair[1] for pair in pairs]
                found[f"{name}_excess"] = mean_result(
                    f"{result.name}_excess", excess, result.direction, variant="paired difference to retrained"
                )
        if "min_k_auc" in self.metrics:
            gold = scores_in(retrained.metrics["min_k_auc"])
            found["privleak"] = privleak(*scores_in(self.metrics["min_k_auc"]), gold)
        self.metrics.update(found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {**super().to_dict(), "gist": self.gist()}
