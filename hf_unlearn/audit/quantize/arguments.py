# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit quantize` and a recipe's `audits: {quantize: ...}` take."""

from dataclasses import dataclass, field

from ..robustness.arguments import RobustnessArguments
from .formats import FORMATS


@dataclass
class QuantizeArguments(RobustnessArguments):
    """What is done to the weights."""

    formats: list[str] = field(
        default_factory=lambda: ["nf4", "int8"], metadata={"help": f"Formats: {', '.join(FORMATS)}."}
    )
    prune: list[float] = field(
        default_factory=list,
        metadata={"help": "Shares of each matrix that magnitude pruning sets to 0, such as 0.1 0.3."},
    )

    def __post_init__(self):
        super().__post_init__()
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"formats: {unknown[0]!r} is unknown; allowed: {', '.join(FORMATS)}.")
        if wrong := [share for share in self.prune if not 0 < share < 1]:
            raise ValueError(f"prune: {wrong[0]}; give shares between 0 and 1.")
        if not self.formats and not self.prune:
            raise ValueError("Neither formats nor prune is given. Give at least one.")
