# SPDX-License-Identifier: Apache-2.0
"""What an audit found, kept as JSON, and compared with the audit of the retrained model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .base import SavedResult
from .ratios import forget_quality, log_truth_ratios
from .result import MetricResult


AUDIT_VERSION = 1


@dataclass
class Audit(SavedResult):
    """The audit of one model.

    Args:
        metrics (`dict[str, MetricResult]`):
            `"forget/probability"`, ..., `"model_utility"`, `"forget_quality"`.
        answers (`list[dict]`):
            Rows of `set`, `question`, `expected`, `answer`; the same questions for every model.
        items (`dict[str, dict[str, list]]`):
            Of every set: `index` (place in the set), `tokens` (labelled tokens of the answer), `logp` (mean
            log-probability a token of the answer), and, where there are, `paraphrased_logp` and `perturbed_logps`.
        settings (`dict`):
            What the numbers depend on besides the model.
    """

    kind: ClassVar[str] = "audit"
    version: ClassVar[int] = AUDIT_VERSION

    metrics: dict[str, MetricResult]
    answers: list[dict[str, str]]
    items: dict[str, dict[str, list]] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    def compare(self, retrained: "Audit | dict | str | Path") -> dict[str, MetricResult]:
        """Forget quality against the retrained model, added to `metrics` and returned.

        Args:
            retrained (`Audit`, `dict`, `str` or `Path`):
                Audit of the model trained without the forget set, its `to_dict()`, or the file it was saved to.

        Returns:
            `dict`: `"forget_quality"`, or `"<set>/forget_quality"` for each of several forget sets.

        Raises:
            `ValueError`: if that audit lacks the forget set, was of other items or settings, or if this audit has no
            forget set with wrong answers.
        """
        retrained = as_audit(retrained)
        names = comparable_sets(self.settings, retrained)
        variant = self.settings["truth_ratio"]
        found = {}
        for name in names:
            if self.items[name].get("tokens") != retrained.items[name].get("tokens"):
                raise ValueError(
                    f"The retrained model's tokenizer cuts the answers of the set {name!r} into other tokens, and "
                    "probabilities are means a token. Audit both with the same tokenizer."
                )
            key = "forget_quality" if len(names) == 1 else f"{name}/forget_quality"
            found[key] = forget_quality(
                item_log_ratios(self.items[name], variant), item_log_ratios(retrained.items[name], variant), variant
            )
        self.metrics.update(found)
        return found


def as_audit(audit: "Audit | dict | str | Path") -> Audit:
    """An audit given as itself, as its dict or as its file."""
    if isinstance(audit, Audit):
        return audit
    return Audit.from_dict(audit) if isinstance(audit, dict) else Audit.load(audit)


def comparable_sets(settings: dict[str, Any], retrained: Audit) -> list[str]:
    """Forget sets with truth ratios, after a check that the retrained model was audited on the same items.

    Raises:
        `ValueError`: if there is none, or it was not.
    """
    about = settings["sets"]
    names = [name for name in about if about[name]["role"] == "forget" and about[name].get("wrong_answers")]
    if not names:
        raise ValueError(
            "forget_quality needs truth ratios of a forget set, and there are none. Audit a set with role 'forget' "
            "whose rows have `perturbed_answer`."
        )
    known = retrained.settings["sets"]
    for name in names:
        if name not in known:
            raise ValueError(
                f"The retrained model's audit has no set {name!r}, only {sorted(known)}. Audit it on the same sets."
            )
        common = ("qa", "max_length")
        mine = {**about[name], **{key: settings.get(key) for key in common}}
        theirs = {**known[name], **{key: retrained.settings.get(key) for key in common}}
        differing = {key: (mine[key], theirs.get(key)) for key in mine if mine[key] != theirs.get(key)}
        if differing:
            raise ValueError(
                f"The retrained model's audit is of other items in the set {name!r} (this audit, that audit): "
                f"{differing}. Audit both with the same rows, `max_items`, `seed`, `qa` and `max_length`."
            )
    return names


def item_log_ratios(items: dict[str, list], variant: str) -> list[float | None]:
    """Log truth ratios of a set's items; the answer itself stands in for a missing paraphrase."""
    right = items.get("paraphrased_logp", items["logp"])
    return log_truth_ratios(right, items["perturbed_logps"], variant)
