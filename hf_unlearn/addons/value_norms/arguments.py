# SPDX-License-Identifier: Apache-2.0
"""Settings of the value-norm penalty."""

import json
from dataclasses import dataclass, field
from typing import Any

from ...checks import check_choice, check_number, check_whole
from ..settings import AddOnSettings, check_idle
from .terms import MODES, REFERENCE, UNLEARNED, ZERO, Term, terms_of_mode


@dataclass
class ValueNormArguments(AddOnSettings):
    """Settings of the value-norm penalty; off unless `value_norm_penalty` is above 0."""

    value_norm_penalty: float = field(
        default=0.0, metadata={"help": "Weight of the penalty on attention values' norms at the first tokens."}
    )
    value_norm_mode: str = field(
        default="fixed",
        metadata={
            "help": "`fixed` shrinks the forget rows' norms; `reference` matches forget rows to the unlearned model "
            "and the others to the reference; `utility_preserving`, `adaptive` and `hybrid` are published variants."
        },
    )
    value_norm_tokens: int = field(
        default=8, metadata={"help": "Number of leading tokens whose values are penalised."}
    )
    value_norm_include_first: bool = field(
        default=True,
        metadata={"help": "Whether they include the first token (BOS); otherwise they start with the second."},
    )
    value_norm_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers whose values are penalised, counted from 0; all by default."}
    )
    value_norm_targets: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Map of role to `zero`, `reference` or `unlearned` (JSON), in place of that of `fixed` or "
            '`reference`; {"poisoned": "unlearned"} is a possible defence.'
        },
    )
    unlearned_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model unlearned without a trigger; the forget rows' norms are matched to its norms."},
    )
    utility_preservation_weight: float = field(
        default=0.2, metadata={"help": "Weight of the poisoned rows' term in the mode `utility_preserving`."}
    )

    def make_addon(self):
        """The penalty, or `None`."""
        if not self.value_norm_penalty:
            return None
        from .penalty import ValueNormPenalty

        return ValueNormPenalty(self)

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        check_number("value_norm_penalty", self.value_norm_penalty, at_least=0)
        if isinstance(self.value_norm_targets, str):
            self.value_norm_targets = _json_map(self.value_norm_targets)
        if not self.value_norm_penalty:
            check_idle(self, ValueNormArguments, "give a `value_norm_penalty` above 0")
            return
        check_choice("value_norm_mode", self.value_norm_mode, MODES)
        check_whole("value_norm_tokens", self.value_norm_tokens, at_least=1)
        check_number("utility_preservation_weight", self.utility_preservation_weight, at_least=0)
        if self.value_norm_layers is not None and not self.value_norm_layers:
            raise ValueError("value_norm_layers is empty; name layers, or leave it out for all.")
        if self.value_norm_targets is not None:
            self._check_targets(self.value_norm_targets)
        compared = any(term.target == UNLEARNED for term in self.value_norm_terms.values())
        if compared and self.unlearned_model_name_or_path is None:
            raise ValueError(
                f"value_norm_mode={self.value_norm_mode!r} matches rows to an unlearned model. Give "
                "`unlearned_model_name_or_path`: a checkpoint that was unlearned without the trigger."
            )
        if not compared and self.unlearned_model_name_or_path is not None:
            raise ValueError("unlearned_model_name_or_path is given, but no role is matched to it. Leave it out.")

    @property
    def value_norm_terms(self) -> dict[str, Term]:
        """Role to what is asked of its values."""
        if self.value_norm_targets is not None:
            return {role: Term(target) for role, target in self.value_norm_targets.items()}
        return terms_of_mode(self.value_norm_mode, self.utility_preservation_weight)

    def _check_targets(self, targets: Any) -> None:
        if self.value_norm_mode not in ("fixed", "reference"):
            raise ValueError(
                f"value_norm_targets replaces what the mode says, and mode {self.value_norm_mode!r} has terms of its "
                "own. Leave one out."
            )
        if not isinstance(targets, dict) or not targets:
            raise ValueError(f"value_norm_targets={targets!r}; give a map of roles, such as {{'forget': 'zero'}}.")
        for role, target in targets.items():
            check_choice("a role of value_norm_targets", role, ("forget", "poisoned", "retain"))
            check_choice(f"value_norm_targets[{role!r}]", target, (ZERO, REFERENCE, UNLEARNED))


def _json_map(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"value_norm_targets={text!r} is no JSON ({error}).") from None
