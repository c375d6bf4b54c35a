# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit robustness`: several audits of robustness, and one report of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from ..audit.registry import AUDITS
from .blocks import attack_blocks, attack_kinds


DESCRIPTION = "does what was forgotten come back? Several of the attacks, and one report"


def attacks_arguments() -> type:
    """The fields of the command: those of every attack, `audits`, and for each attack a block of its own."""
    from ..audit.robustness.arguments import RobustnessArguments

    @dataclass
    class Attacks(RobustnessArguments):
        audits: list[str] = field(
            default_factory=list, metadata={"help": f"Attacks: {', '.join(attack_kinds())}."}
        )  # fmt: skip

    blocks = [
        (name, dict[str, Any] | str | None, field(default=None, metadata={"help": f"Fields of `audit {name}` alone."}))
        for name in attack_kinds()
    ]
    return make_dataclass("AttacksArguments", blocks, bases=(Attacks,))


def audit_attacks(args: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Makes all attacks that are asked for; each has its files in a folder of its own.

    Args:
        args: of [`attacks_arguments`].
        given (`dict`): field to value, of those that were given.

    Returns:
        `tuple`: the content of `robustness.json`, and the files that were written, by ending.

    Raises:
        `ValueError`: for what one of them cannot do, before a model is loaded.
    """
    from ..audit.robustness.several.view import VIEW
    from .audits import audit, read_block

    folder = Path(args.output_dir or f"runs/audit/{Path(args.model_name_or_path).name}")
    blocks = attack_blocks({name: value for name, value in given.items() if name != "output_dir"})
    ready = []
    for name, block in blocks.items():
        kind = AUDITS[name]
        parts = read_block(kind, {**block, "output_dir": str(folder / name)})
        try:
            ready.append((kind, *parts, kind.prepare(*parts)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    found = {kind.name: audit(kind, part, qa, prepared)[0] for kind, part, qa, prepared in ready}
    together = VIEW.together(found)
    return together, VIEW.write(together, folder)
