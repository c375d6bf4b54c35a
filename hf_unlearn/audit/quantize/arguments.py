# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit quantize` and a recipe's `audits: {quantize: ...}` take."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from ...checks import check_choice, check_choices
from ..robustness.arguments import RobustnessArguments, preset_field
from .formats import FORMATS


BACKENDS = ("simulated", "bitsandbytes")
REAL = ("nf4", "fp4", "int8")


@dataclass
class QuantizeArguments(RobustnessArguments):
    """What is done to the weights."""

    QUICK: ClassVar[dict[str, Any]] = {"formats": ["nf4"]}

    formats: list[str] = field(
        default_factory=lambda: ["nf4", "int8"], metadata={"help": f"Formats: {', '.join(FORMATS)}."}
    )
    prune: list[float] = field(
        default_factory=list,
        metadata={"help": "Shares of each matrix that magnitude pruning sets to 0, such as 0.1 0.3."},
    )
    backend: str = field(
        default="simulated",
        metadata={
            "help": "`simulated` rounds weights and computes in their own dtype; `bitsandbytes` puts its layers into "
            f"the model, for {', '.join(REAL)}, and requires that package.",
            "choices": list(BACKENDS),
        },
    )
    skip: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of modules that are left as they are, such as `down_proj`; the head always is."},
    )
    merge: str | None = field(
        default=None,
        metadata={
            "help": "Another model of this architecture, such as the original: weights are also put together with its "
            "own, all of them."
        },
    )
    merge_weights: list[float] = field(
        default_factory=lambda: [0.25, 0.5],
        metadata={"help": "With `merge`, its shares w in (1 - w) W + w W_merge; each between 0 and 1."},
    )

    preset: str = preset_field("nf4 alone")

    def __post_init__(self):
        super().__post_init__()
        check_choices("formats", self.formats, FORMATS)
        if wrong := [share for share in self.prune if not 0 < share < 1]:
            raise ValueError(f"prune: {wrong[0]}; give shares between 0 and 1.")
        if wrong := [share for share in self.merge_weights if not 0 < share < 1]:
            raise ValueError(f"merge_weights: {wrong[0]}; give shares between 0 and 1.")
        if self.merge is not None and not self.merge_weights:
            raise ValueError(f"merge={self.merge!r} requires `merge_weights`: at least one share between 0 and 1.")
        if not self.formats and not self.prune and self.merge is None:
            raise ValueError("Neither formats nor prune nor merge is given. Give at least one.")
        check_choice("backend", self.backend, BACKENDS)
        if self.backend == "bitsandbytes":
            if other := [name for name in self.formats if name not in REAL]:
                raise ValueError(f"bitsandbytes has no format {other[0]!r}, only {', '.join(REAL)}. Use `simulated`.")
            if find_spec("bitsandbytes") is None:
                raise ValueError("backend='bitsandbytes' requires that package: `pip install bitsandbytes`.")
