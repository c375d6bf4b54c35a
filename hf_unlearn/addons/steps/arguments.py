# SPDX-License-Identifier: Apache-2.0
"""Settings of sharpness-aware steps and of random smoothing (https://huggingface.co/papers/2502.05374)."""

from dataclasses import dataclass, field

from ...checks import check_choice, check_number, check_whole
from ..settings import AddOnSettings, check_idle


SMOOTHED_TERMS = ("forget", "all")


@dataclass
class SAMArguments(AddOnSettings):
    """Settings of sharpness-aware steps; off unless `sam_rho` is given. Published: 0.01, the forget term alone."""

    sam_rho: float | None = field(
        default=None,
        metadata={
            "help": "Sharpness-aware minimisation (SAM): the gradient is that at the weights plus this length along "
            "the gradient, so that the loss is low around the weights too. Default: off."
        },
    )
    sam_terms: str = field(
        default="forget", metadata={"help": "The loss that SAM is for: the `forget` term, or `all` terms together."}
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.sam_rho is None:
            check_idle(self, SAMArguments, "give `sam_rho`")
            return
        check_number("sam_rho", self.sam_rho, above=0)
        check_choice("sam_terms", self.sam_terms, SMOOTHED_TERMS)

    def make_addon(self):
        """Sharpness-aware steps, or `None`."""
        if self.sam_rho is None:
            return None
        from .neighbours import SharpnessAware

        return SharpnessAware(self.sam_terms, self.sam_rho)


@dataclass
class SmoothingArguments(AddOnSettings):
    """Settings of random smoothing; off unless `smoothing_std` is given. Published: 1e-4, 3 draws, the forget term."""

    smoothing_std: float | None = field(
        default=None,
        metadata={
            "help": "Random smoothing: the gradient is the mean of those at the weights plus Gaussian noise of this "
            "standard deviation. Default: off."
        },
    )
    smoothing_draws: int = field(default=3, metadata={"help": "Draws of noise a step."})
    smoothing_terms: str = field(
        default="forget", metadata={"help": "The loss that is smoothed: the `forget` term, or `all` terms together."}
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.smoothing_std is None:
            check_idle(self, SmoothingArguments, "give `smoothing_std`")
            return
        check_number("smoothing_std", self.smoothing_std, above=0)
        check_whole("smoothing_draws", self.smoothing_draws, at_least=1)
        check_choice("smoothing_terms", self.smoothing_terms, SMOOTHED_TERMS)
        if getattr(self, "sam_rho", None) is not None:
            raise ValueError("sam_rho and smoothing_std: each would replace the other's gradients. Leave one out.")

    def make_addon(self):
        """Random smoothing, or `None`."""
        if self.smoothing_std is None:
            return None
        from .neighbours import RandomSmoothing

        return RandomSmoothing(self.smoothing_terms, self.smoothing_std, self.smoothing_draws, self.seed)
