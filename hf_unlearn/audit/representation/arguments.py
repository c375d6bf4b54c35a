# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit representation` and a recipe's `audits: {representation: ...}` take."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choices
from ..robustness.arguments import RobustnessArguments, preset_field
from .vectors import read_vector


# part -> what it requires besides the audited model
PARTS = {
    "weights": ("original",),
    "lens": (),
    "erasure": ("original", "retrained"),
    "restoration": ("original",),
    "directions": (),
    "similarity": ("original",),
}
QUICK_LAYERS, QUICK_ROWS = 8, 48
DEFAULT = ("weights", "lens", "erasure", "restoration", "directions")


@dataclass
class RepresentationArguments(RobustnessArguments):
    """What is read in the model."""

    QUICK: ClassVar[dict[str, Any]] = {"seeds": [0], "max_items": QUICK_ROWS}

    parts: list[str] = field(default_factory=lambda: list(DEFAULT), metadata={"help": f"Parts: {', '.join(PARTS)}."})
    layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers that are read, counted from 0; all by default. `erasure` and `restoration` take a "
            "pass through the model for each."
        },
    )

    vectors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Value vectors of MLPs (columns of `down_proj`) to be compared with the original's, each as "
            "layer:index, such as 12:3407."
        },
    )
    preset: str = preset_field(f"{QUICK_LAYERS} layers from the first to the last, one seed and {QUICK_ROWS} rows")

    def __post_init__(self):
        super().__post_init__()
        if self.vectors and self.original_model_name_or_path is None:
            raise ValueError("vectors requires `--original_model_name_or_path`, whose vectors they are compared with.")
        self.places()
        check_choices("parts", self.parts, PARTS)
        if not self.parts:
            raise ValueError(f"parts is empty; give some of {', '.join(PARTS)}.")
        if self.layers is not None and (not self.layers or len({*self.layers}) < len(self.layers)):
            raise ValueError(f"layers={self.layers}; give each layer once, at least one, or leave it out.")

    @property
    def given(self) -> set[str]:
        """Which models there are to compare with."""
        names = {"original": self.original_model_name_or_path, "retrained": self.retrained_model_name_or_path}
        return {name for name, path in names.items() if path is not None}

    def places(self) -> list[tuple[int, int]]:
        """Layer and index of each of `vectors`."""
        return [read_vector(text) for text in self.vectors or ()]

    def layers_of(self, count: int) -> list[int]:
        """Layers to read, of a model that has so many."""
        if self.layers is not None:
            return sorted(self.layers)
        if self.preset == "quick" and count > QUICK_LAYERS:
            return sorted({round(i * (count - 1) / (QUICK_LAYERS - 1)) for i in range(QUICK_LAYERS)})
        return list(range(count))

    def asked(self, part: str) -> bool:
        """Whether a part is asked for and can be had."""
        return part in self.parts and {*PARTS[part]} <= self.given
