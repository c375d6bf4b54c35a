# SPDX-License-Identifier: Apache-2.0
"""Blocks of fields in a recipe: one an audit, and the block of several audits of robustness as one for each."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from ..audit.registry import AUDITS
from ..data.qa import QAFormat
from ..yaml_file import read_fields


NAME = "robustness"


def attack_kinds() -> list[str]:
    """The audits that attack a model and say how much is left."""
    from ..audit.robustness.kind import RobustnessKind

    return [name for name in AUDITS if isinstance(AUDITS[name], RobustnessKind)]


def attack_blocks(block: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One block of fields for each attack.

    Args:
        block (`dict`):
            `audits` names the attacks; fields of one stand under its name, all others are of each.

    Raises:
        `ValueError`: for no or unknown attacks, fields that not every attack has, and settings of one that is not
            asked for.
    """
    from ..audit.robustness.arguments import RobustnessArguments

    kinds, asked = attack_kinds(), block.get("audits") or []
    allowed = f"Allowed: {', '.join(kinds)}."
    if not isinstance(asked, list) or not asked:
        raise ValueError(f"{NAME}: audits={block.get('audits')!r}; give a list of attacks. {allowed}")
    for name in asked:
        if name not in kinds:
            near = get_close_matches(str(name), kinds, n=1)
            raise ValueError(
                f"{NAME}: {name!r} is no attack.{f' Did you mean {near[0]!r}?' if near else ''} {allowed}"
            )
    common = {part.name for part in (*fields(RobustnessArguments), *fields(QAFormat))}
    own = {name: read_fields(name, block[name], "{max_items: 100}") or {} for name in kinds if block.get(name)}
    if idle := [name for name in own if name not in asked]:
        raise ValueError(f"{NAME}: settings of {idle[0]} are given, which is not among audits: {', '.join(asked)}.")
    shared = {name: value for name, value in block.items() if name != "audits" and name not in kinds}
    if unknown := [name for name in shared if name not in common]:
        raise ValueError(
            f"{NAME}: {unknown[0]!r} is no field of every attack. Give it under the name of one: "
            f"`{asked[0]}: {{{unknown[0]}: ...}}`, or leave it out."
        )
    return {name: {**shared, **own.get(name, {})} for name in dict.fromkeys(asked)}
