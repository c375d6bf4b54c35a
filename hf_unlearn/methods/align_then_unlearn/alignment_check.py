# SPDX-License-Identifier: Apache-2.0
"""Whether a head that was aligned finds anything, told before the model is pushed by it."""

import logging
from itertools import pairwise

import torch
from torch import Tensor


logger = logging.getLogger(__name__)

# Steps at a stage's end whose mean counts.
LAST = 20
# Of the way from what one constant answer reaches to a cosine of 1. The embedded world's head goes 0.72 of it.
HARDLY = 0.15


class AlignmentCheck:
    """Watches the gains of alignment stages, and the thresholds of rounds.

    Args:
        args ([`AlignThenUnlearnConfig`]): the run's.
    """

    def __init__(self, args):
        self.args = args
        self.gains: list[Tensor] = []

    def add(self, gain: Tensor) -> None:
        """Takes the gain of an alignment step, a scalar: cosine to the right text above that of a constant answer."""
        self.gains = [*self.gains[1 - LAST :], gain.detach()]

    def judge(self, number: int, floor: float, accelerator) -> float | None:
        """Warns where the stage that ended left the head hardly aligned; called by all ranks.

        Args:
            number (`int`): of the round, from 0.
            floor (`float`): what a constant answer reaches.

        Returns:
            `float`: the mean gain of the last steps, over ranks; `None` where none was taken.
        """
        if not self.gains:
            return None
        gain = accelerator.reduce(torch.stack(self.gains).mean(), reduction="mean").item()
        self.gains = []
        possible = 1 - floor
        if gain < HARDLY * possible and accelerator.is_main_process:
            name = "align_steps" if number else "first_align_steps"
            logger.warning(
                "Round %d: the head is hardly aligned. Its cosine to the right text is %.2g, and one constant answer "
                "reaches %.2g: a gain of %.2g, where %.2g would be perfect. What it takes for the concept is next to "
                "noise, and so is what is unlearned. Raise `%s` (%d) or `head_learning_rate` (%g).",
                number + 1,
                floor + gain,
                floor,
                gain,
                possible,
                name,
                getattr(self.args, name),
                self.args.head_learning_rate,
            )
        return gain


def tell_rising(thresholds: list[float]) -> None:
    """Warns where the newest threshold is above the one before it: its round pushes less than that one did."""
    if len(thresholds) > 1 and thresholds[-1] > thresholds[-2]:
        before, now = list(pairwise(thresholds))[-1]
        logger.warning(
            "The threshold of round %d is a cosine of %.3g, above %.3g of the round before, although `thresholds` "
            "sink: the head finds the concept more, not less, so the rounds do not add up. Raise `align_steps`, or "
            "give `threshold_mode: cosine`.",
            len(thresholds),
            now,
            before,
        )
