# SPDX-License-Identifier: Apache-2.0
"""What an audit of robustness found in one model, and how it compares with the original and the retrained one."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..base import SavedResult
from ..result import MetricResult
from .arms import Arms
from .compare import before_metrics, compared
from .measured import Measured


@dataclass
class Robustness(SavedResult):
    """What one attack found in one model.

    Args:
        metrics (`dict[str, MetricResult]`):
            `before/<score>` and `<family>/<score>/after`, of its strongest setting; after `compare`
            `<family>/<score>/remaining`, and `worst/remaining`. Without families, names begin with the score.
        settings (`dict`):
            What the numbers depend on besides the model.
        before ([`Measured`]):
            The model as it is, on all forget rows.
        measured (`list[Measured]`):
            The model under each setting of the attack.
        cost (`dict`): what it took: `seconds`, `tokens`.
    """

    kind: ClassVar[str] = "robustness"

    metrics: dict[str, MetricResult] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    before: Measured | None = field(default=None, repr=False)
    measured: list[Measured] = field(default_factory=list, repr=False)
    cost: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.metrics and self.before is not None:
            self.metrics = before_metrics(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        parts = {"before": self.before and self.before.to_dict(), "measured": [m.to_dict() for m in self.measured]}
        return super().to_dict() | parts

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Robustness":
        """The result that `to_dict` wrote."""
        found = super().from_dict(saved)
        found.before = found.before and Measured.from_dict(found.before)
        found.measured = [Measured.from_dict(one) for one in found.measured]
        return found

    @staticmethod
    def metric_name(key: str) -> str:
        """A metric's own name of its key: it is the key."""
        return key

    def compare(
        self, retrained: "Robustness | None" = None, original: "Robustness | None" = None
    ) -> dict[str, MetricResult]:
        """What is left of what the original model knew, added to `metrics` and returned.

        Raises:
            `ValueError`: if a result is of other rows or another attack.
        """
        for name, other in (("retrained", retrained), ("original", original)):
            theirs = self.settings if other is None else other.settings
            if differs := sorted(key for key, value in self.settings.items() if theirs.get(key) != value):
                raise ValueError(
                    f"The {name} model's result differs in {', '.join(differs)}. Audit both on the same rows with the "
                    "same settings."
                )
        found = compared(Arms(self, retrained, original))
        self.metrics.update(found)
        return found
