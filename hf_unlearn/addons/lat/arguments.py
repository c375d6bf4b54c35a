# SPDX-License-Identifier: Apache-2.0
"""Settings of latent adversarial training (https://huggingface.co/papers/2407.15549)."""

from dataclasses import dataclass, field

from ...checks import check_choice, check_number, check_whole
from ..settings import AddOnSettings, check_idle


PERTURBED = ("all", "prompt")
# Of the authors' configs for WMDP.
LAYERS = (7,)


@dataclass
class LATArguments(AddOnSettings):
    """Settings of latent adversarial training; off unless `lat_epsilon` is given. The other defaults are those of the
    authors' configs for RMU and gradient ascent on WMDP, whose radius is 2 (Zephyr-7B)."""

    lat_epsilon: float | None = field(
        default=None,
        metadata={
            "help": "Latent adversarial training (LAT): the forget term is taken while layers' outputs are perturbed, "
            "each token's by at most this L2 norm, so that the forget answers are likely. Published: 2. Default: off."
        },
    )
    lat_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Decoder layers whose outputs LAT perturbs together, counted from 0. Default: 7."},
    )
    lat_steps: int = field(
        default=16,
        metadata={
            "help": "Inner steps of LAT, each a forward over the forget rows and a backward to the perturbed states."
        },
    )
    lat_learning_rate: float = field(default=0.05, metadata={"help": "Rate of LAT's inner steps, of AdamW."})
    lat_tokens: str = field(
        default="all",
        metadata={
            "help": "Tokens of forget rows that LAT perturbs: `all`, as published for texts, or those of the `prompt` "
            "alone, as published for questions."
        },
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        if self.lat_epsilon is None:
            check_idle(self, LATArguments, "give `lat_epsilon`")
            return
        check_number("lat_epsilon", self.lat_epsilon, at_least=0)
        check_whole("lat_steps", self.lat_steps, at_least=1)
        check_number("lat_learning_rate", self.lat_learning_rate, above=0)
        check_choice("lat_tokens", self.lat_tokens, PERTURBED)
        layers = self.lat_layers
        right = layers is None or (
            isinstance(layers, list)
            and layers
            and all(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers)
            and len({*layers}) == len(layers)
        )
        if not right:
            raise ValueError(f"lat_layers={layers!r}; give a list of layers, counted from 0, each once.")

    def make_addon(self):
        """Latent adversarial training, or `None`."""
        if self.lat_epsilon is None:
            return None
        from .attack import LatentAttack

        return LatentAttack(
            epsilon=self.lat_epsilon,
            layers=tuple(LAYERS if self.lat_layers is None else self.lat_layers),
            steps=self.lat_steps,
            learning_rate=self.lat_learning_rate,
            tokens=self.lat_tokens,
        )
