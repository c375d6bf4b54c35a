# SPDX-License-Identifier: Apache-2.0
"""What is measured: a method with its settings, or supervised fine-tuning on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        label (`str`): its name there.
        method (`str`, *optional*): name in `METHODS`; `None` is supervised fine-tuning.
        settings (`dict`): fields of the method's config.
        roles (`tuple[str, ...]`): whose rows a step trains on.
    """

    label: str
    method: str | None = None
    settings: dict = field(default_factory=dict)
    roles: tuple[str, ...] = ("forget", "retain")

    @property
    def baseline(self) -> str:
        """Label of the fine-tuning on the same rows."""
        return SFT[self.roles].label


SFT = {
    ("forget", "retain"): Case("sft"),
    ("forget",): Case("sft (forget rows)", roles=("forget",)),
}
CASES = {
    "ga": Case("ga", "ga", {"retain_loss": "none"}, ("forget",)),
    "grad_diff": Case("grad_diff", "ga", {"retain_loss": "nll"}),
    "ga_kl": Case("ga_kl", "ga", {"retain_loss": "kl"}),
    "npo": Case("npo", "npo", {"retain_loss": "none"}, ("forget",)),
    "npo_gdr": Case("npo_gdr", "npo", {"retain_loss": "nll"}),
    "npo_klr": Case("npo_klr", "npo", {"retain_loss": "kl"}),
}
DEFAULT_METHODS = ("ga_kl", "npo", "npo_klr")
# What peers do: logits of the whole vocabulary, and a second model for the reference.
PLAIN = {"fused_losses": False, "reference": "live"}


def select(methods: Sequence[str], plain: bool) -> list[Case]:
    """The cases to run, each fine-tuning baseline before the first that needs it.

    Args:
        methods (`Sequence[str]`): names in `CASES`; `sft` is allowed, and always there anyway.
        plain (`bool`): add the plain path of each.
    """
    cases: list[Case] = [SFT["forget", "retain"]] if "sft" in methods else []
    for name in dict.fromkeys(methods):
        if name == "sft":
            continue
        if name not in CASES:
            near = get_close_matches(name, CASES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown method {name!r}; allowed: sft, {', '.join(CASES)}.{hint}")
        case = CASES[name]
        if SFT[case.roles] not in cases:
            cases.append(SFT[case.roles])
        cases.append(case)
        if plain:
            cases.append(Case(f"{case.label} (plain)", case.method, {**case.settings, **PLAIN}, case.roles))
    return cases
