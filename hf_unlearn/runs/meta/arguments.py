# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit meta` takes, and what its presets stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from ...checks import check_choice
from ..blocks import attack_kinds
from .members import KNOWING, LOCKED, POOLS


PRESETS = ("quick", "full")


@dataclass(frozen=True)
class Plan:
    """How many models, how long each is trained, and how each audit is made.

    Args:
        sizes (`dict[str, int]`): models by pool; of `P3`, with each lock.
        audits (`dict[str, dict]`): kind to its fields.
        retest (`int`): so many models of P0, P2 and N0 are audited again with `other_seeds`.
        steps (`int`), learning_rate (`float`): of training.
    """

    sizes: Mapping[str, int]
    audits: Mapping[str, Mapping[str, Any]]
    retest: int = 1
    other_seeds: tuple[int, ...] = (1000,)
    steps: int = 120
    learning_rate: float = 2e-3


_FULL = {
    "quantize": {"formats": ["nf4", "int8", "int4"]},
    "representation": {"parts": ["lens", "erasure", "directions"]},
    "sampling": {"mode": "exact"},
    "relearn": {"adapter": "none", "learning_rates": [1e-4, 5e-4, 2e-3], "max_steps": 32, "eval_steps": [4, 8, 16]},
    "prompts": {},
    "soft_prompt": {},
}
_QUICK = {
    "quantize": {"formats": ["nf4"]},
    "representation": {"preset": "quick", "parts": ["lens", "erasure"]},
    "sampling": {"mode": "exact"},
    "relearn": {"adapter": "none", "learning_rates": [5e-4], "max_steps": 16, "eval_steps": [8], "seeds": [0]},
    "prompts": {"transforms": ["paraphrase", "filler", "multi_turn"], "retain_items": 16},
    "soft_prompt": {"preset": "quick", "steps": 60},
}
# Too slow to be tried without being asked for; by preset.
_ASKED_FOR = {"quick": {"gcg": {"preset": "quick"}}, "full": {"gcg": {"budget_tokens": 200_000}}}
PLANS = {
    "full": Plan(dict.fromkeys(POOLS, 6) | {LOCKED: 3}, _FULL, retest=3, other_seeds=(1000, 1001, 1002)),
    "quick": Plan(dict.fromkeys(KNOWING, 2) | {LOCKED: 1, "N0": 2, "N1": 1, "N2": 1, "N3": 2}, _QUICK),
}


@dataclass
class MetaArguments:
    """Which of our audits are tried, and how thoroughly."""

    audits: list[str] | None = field(
        default=None,
        metadata={"help": "Audits to try; default: all that say how much is left, but for gcg, which takes long."},
    )
    preset: str = field(
        default="full",
        metadata={
            "help": "`full`: 6 models a pool and 3 a lock; `quick`: 6 that know, 6 that do not and one a lock, and "
            "shorter attacks.",
            "choices": list(PRESETS),
        },
    )
    output_dir: str = field(default="runs/audit/meta", metadata={"help": "Where meta.json and meta.md are written."})

    def __post_init__(self):
        check_choice("preset", self.preset, PRESETS)
        kinds = [name for name in attack_kinds() if name in self._known]
        if self.audits is not None and not self.audits:
            raise ValueError(f"audits is empty; name some of {', '.join(kinds)}, or leave it out for all.")
        for name in self.audits or ():
            if name not in kinds:
                near = get_close_matches(str(name), kinds, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"audits: {name!r} does not say how much is left.{hint} Allowed: {', '.join(kinds)}.")

    @property
    def _known(self) -> dict[str, Mapping[str, Any]]:
        """The fields of each audit that can be tried."""
        return {**PLANS[self.preset].audits, **_ASKED_FOR[self.preset]}

    @property
    def plan(self) -> Plan:
        """The preset, with the audits that are asked for."""
        plan = PLANS[self.preset]
        return replace(plan, audits={name: self._known[name] for name in self.audits or plan.audits})
