# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit two_checkpoint` and a recipe's `audits: {two_checkpoint: ...}` take."""

from dataclasses import dataclass, field

from ...checks import check_number
from ..robustness.arguments import RobustnessArguments


@dataclass
class TwoCheckpointArguments(RobustnessArguments):
    """How the predictions of the two models are put together."""

    guidance: list[float] = field(
        default_factory=lambda: [1.5, 2.0, 4.0],
        metadata={"help": "g in (1 - g) log p_after + g log p_before; above 1. The strongest is reported."},
    )
    token_filter: float = field(
        default=0.1,
        metadata={
            "help": "Tokens with less than this share of the original model's largest probability are left out; 0 "
            "leaves out none."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.guidance:
            raise ValueError("guidance is empty; give at least one number above 1.")
        for value in self.guidance:
            # With 1 the original model is alone.
            check_number("guidance", value, above=1)
        if not 0 <= self.token_filter < 1:
            raise ValueError(f"token_filter={self.token_filter}; give a share from 0 up to, not including, 1.")
