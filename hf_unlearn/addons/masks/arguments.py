# SPDX-License-Identifier: Apache-2.0
"""Settings of the weight mask."""

from dataclasses import dataclass, field

from ...checks import check_choice, check_number, check_whole
from ..settings import AddOnSettings, check_idle, idle_fields
from .files import check_mask_file
from .kinds import FILE, SCORES, WAGLE


@dataclass
class MaskArguments(AddOnSettings):
    """Settings of the weight mask; off unless `mask_by` is given."""

    mask_by: str | None = field(
        default=None,
        metadata={
            "help": "Train only the weights of the highest score: `gradient` (SalUn), `snip`, `fisher` (forget over "
            "retain), `wagle` (of the method's own forget term), `wanda`, `magnitude`, `random`, or those of a "
            "`file`. Default: all weights train."
        },
    )
    mask_share: float = field(default=0.5, metadata={"help": "Share of the weights that train, of all together."})
    mask_rows: int | None = field(
        default=None, metadata={"help": "Rows of each role that the score is computed from; all by default."}
    )
    mask_mu: float = field(
        default=1e-6,
        metadata={"help": "With `mask_by: wagle`: curvature of the retain loss, which its gradient is divided by."},
    )
    mask_file: str | None = field(
        default=None,
        metadata={"help": "With `mask_by: file`: safetensors of bool or uint8, 1 where a weight trains, by its name."},
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.mask_by is None:
            check_idle(self, MaskArguments, "give `mask_by`")
            return
        check_choice("mask_by", self.mask_by, (*SCORES, FILE))
        check_number("mask_share", self.mask_share, above=0)
        if self.mask_share > 1:
            raise ValueError(f"mask_share={self.mask_share}; give a share above 0 and at most 1.")
        check_whole("mask_rows", self.mask_rows, at_least=1)
        check_number("mask_mu", self.mask_mu, above=0)
        unread = ["mask_file"] if self.mask_by != FILE else ["mask_share"]
        unread += [] if SCORES.get(self.mask_by) else ["mask_rows"]
        unread += [] if self.mask_by == WAGLE else ["mask_mu"]
        if idle := [name for name in idle_fields(self, MaskArguments) if name in unread]:
            raise ValueError(f"{', '.join(idle)} would have no effect with mask_by={self.mask_by!r}. Leave it out.")
        if self.mask_by == FILE:
            if self.mask_file is None:
                raise ValueError("mask_by='file' requires `mask_file`, the safetensors file of the mask.")
            check_mask_file(self.mask_file)

    def make_addon(self):
        """The mask, or `None`."""
        if self.mask_by is None:
            return None
        from .mask import WeightMask

        return WeightMask(self)
