# SPDX-License-Identifier: Apache-2.0
"""Which set plays which part in an audit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .ratios import VARIANTS
from .result import ROLES


@dataclass(frozen=True)
class Suite:
    """What an audit does with its sets.

    Args:
        name (`str`):
            Shown in reports.
        roles (`Mapping[str, str]`):
            Set name to `"forget"`, `"retain"` (to be kept) or `"holdout"` (never trained on). Sets that are not named
            here take the role with which their name begins.
        normalized (`tuple[str]`):
            Sets whose probability is normalised over the wrong answers.
        utility (`tuple[str]`, *optional*):
            Sets that count in model utility; by default all question sets with role `"retain"`.
        truth_ratio (`str`):
            `"arithmetic"` (the paper's), `"geometric"` or `"prob_mean"`.
    """

    name: str
    roles: Mapping[str, str] = field(default_factory=dict)
    normalized: tuple[str, ...] = ()
    utility: tuple[str, ...] | None = None
    truth_ratio: str = "arithmetic"

    def __post_init__(self):
        wrong = {name: role for name, role in self.roles.items() if role not in ROLES}
        if wrong:
            raise ValueError(f"Unknown roles {wrong}. Allowed: {', '.join(ROLES)}.")
        if self.truth_ratio not in VARIANTS:
            raise ValueError(f"Unknown truth ratio variant {self.truth_ratio!r}. Allowed: {', '.join(VARIANTS)}.")

    def roles_of(self, names: Iterable[str]) -> dict[str, str]:
        """The role of every set.

        Raises:
            `ValueError`: for a name that neither is in `roles` nor begins with a role.
        """
        found = {name: self.roles.get(name, next((r for r in ROLES if name.startswith(r)), None)) for name in names}
        unknown = [name for name, role in found.items() if role is None]
        if unknown:
            raise ValueError(
                f"No role is known for the sets {unknown}. Say what they are for, as in "
                f"`roles={{{unknown[0]!r}: 'retain'}}`; allowed: {', '.join(ROLES)}."
            )
        return found


# The suite of sets of questions about pictures; its audit is in `vqa.py`.
PICTURES = "vqa"

KEPT = {"general": "retain", "real_authors": "retain", "world_facts": "retain"}

SUITES = {
    "default": Suite("default", roles=KEPT, normalized=("real_authors", "world_facts")),
    # The geometric truth ratio is the one behind TOFU's published forget qualities and OpenUnlearning's tables.
    "tofu": Suite(
        "tofu",
        roles=KEPT,
        normalized=("real_authors", "world_facts"),
        utility=("retain", "real_authors", "world_facts"),
        truth_ratio="geometric",
    ),
    # Its own audit is in `rwku.py`.
    "rwku": Suite("rwku", roles={"neighbor_fb": "retain", "neighbor_qa": "retain", "fluency": "retain"}),
}


def get_suite(suite: "Suite | str | None") -> Suite:
    """A suite by name, the default for `None`, or the given one."""
    if isinstance(suite, Suite):
        return suite
    if suite not in (None, *SUITES):
        raise ValueError(f"Unknown suite {suite!r}. Allowed: {', '.join(SUITES)}, or a `Suite`.")
    return SUITES[suite or "default"]
