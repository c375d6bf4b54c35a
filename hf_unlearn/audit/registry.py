# SPDX-License-Identifier: Apache-2.0
"""`AUDITS`: the kinds of audits by name, as `METHODS` has the methods. A kind is imported when it is used."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .base import AuditKind

# name -> (module in this package, class, what it finds out)
_AUDITS = {
    "backdoor": ("backdoor.measure", "BackdoorKind", "does a trigger restore what was unlearned?"),
    "scan": ("scan.measure", "ScanAudit", "is there an unknown trigger that restores it?"),
    "privacy": ("privacy.measure", "PrivacyAudit", "can forgotten rows be distinguished from unseen rows?"),
    "perplexity": ("perplexity.measure", "PerplexityAudit", "how well does the model predict general text?"),
    "relearn": ("relearn.measure", "RelearnAudit", "does a little training bring back what was forgotten?"),
    "quantize": ("quantize.measure", "QuantizeAudit", "does what was forgotten come back in quantised weights?"),
    "sampling": ("sampling.measure", "SamplingAudit", "does what was forgotten come out in one of many draws?"),
    "representation": ("representation.measure", "RepresentationAudit", "in which layers can it still be read?"),
    "prompts": ("prompt_attacks.measure", "PromptsAudit", "does what was forgotten come back in other words?"),
    "soft_prompt": (
        "soft_prompt.measure",
        "SoftPromptAudit",
        "does a trained prompt bring back other forgotten rows?",
    ),
    "gcg": ("gcg.measure", "GcgAudit", "does a searched prefix bring back other forgotten rows?"),
    "two_checkpoint": (
        "two_checkpoint.measure",
        "TwoCheckpointAudit",
        "what do the models from before and after tell together?",
    ),
}


class _Audits(Mapping):
    """Read-only dict of name to [`AuditKind`]."""

    def __getitem__(self, name: str) -> "AuditKind":
        if name not in _AUDITS:
            near = get_close_matches(str(name), _AUDITS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"Unknown audit {name!r}.{hint} Allowed: {', '.join(_AUDITS)}.")
        module, kind, _ = _AUDITS[name]
        return getattr(import_module(f"{__package__}.{module}"), kind)()

    def __contains__(self, name: object) -> bool:
        return name in _AUDITS

    def __iter__(self) -> Iterator[str]:
        return iter(_AUDITS)

    def __len__(self) -> int:
        return len(_AUDITS)

    def describe(self, name: str) -> str:
        """One line on what a kind finds out."""
        return _AUDITS[name][2]


AUDITS = _Audits()
