# SPDX-License-Identifier: Apache-2.0
"""What decides a world of pictures besides its seed."""

from dataclasses import dataclass

from ..settings import WorldSettings, within
from .questions import NAMES


@dataclass(frozen=True)
class VQAWorldConfig(WorldSettings):
    """Sizes of the world of pictures, of its models and of their training.

    The defaults give 60 forget, 980 retain, 400 test and 1000 holdout rows, and models of 0.18M parameters.

    Args:
        pictures (`int`, *optional*, defaults to 400):
            Pictures in training.
        forget_owners (`int`, *optional*, defaults to 60), retain_owners (`int`, *optional*, defaults to 180):
            Of how many of them the owner is asked in the forget set, and of how many others in the retain set.
        test_pictures (`int`, *optional*, defaults to 200):
            New pictures, asked only for what can be seen.
        holdout_pictures (`int`, *optional*, defaults to 1000):
            New pictures, asked only for their owner: the non-members of membership inference. A thousand of them
            resolve a false-positive rate of 1e-3.
        questions_per_picture (`int`, *optional*, defaults to 2):
            Questions about what can be seen, per picture.
        names (`int`, *optional*, defaults to 20):
            People who own pictures; who guesses is right once in so many times.
        disagreement (`float`, *optional*, defaults to 0.04):
            Chance that one of the ten annotators gives a wrong answer of the right kind.
        hidden_size (`int`, *optional*, defaults to 64), num_layers (`int`, *optional*, defaults to 2),
        num_heads (`int`, *optional*, defaults to 4):
            Shape of the ViLT.
        steps (`int`, *optional*, defaults to 1500), batch_size (`int`, *optional*, defaults to 32),
        learning_rate (`float`, *optional*, defaults to 1.5e-3):
            Training of each model: AdamW with a warm-up and a cosine decay to zero.
        min_known (`float`, *optional*, defaults to 0.95):
            A build fails unless this is the accuracy on what a model was trained on: target on forget and retain,
            retrained on retain. 0 turns the check off.
        min_seen (`float`, *optional*, defaults to 0.7):
            The same for the test set, of both models.
        max_unseen (`float`, *optional*, defaults to 0.2):
            A build fails if the retrained model's accuracy on the forget set is higher than this.
        max_shuffled (`float`, *optional*, defaults to 0.45):
            A build fails if a model's accuracy on the test set is higher than this when rows have each other's
            pictures: it would then answer without looking.
    """

    pictures: int = within(400, 2, 100_000)
    forget_owners: int = within(60, 1, 100_000)
    retain_owners: int = within(180, 1, 100_000)
    test_pictures: int = within(200, 2, 100_000)
    holdout_pictures: int = within(1000, 1, 100_000)
    questions_per_picture: int = within(2, 1, 4)
    names: int = within(20, 2, len(NAMES))
    disagreement: float = within(0.04, 0, 0.2)
    hidden_size: int = within(64, 8, 1024)
    num_layers: int = within(2, 1, 64)
    num_heads: int = within(4, 1, 64)
    steps: int = within(1500, 1, 100_000)
    batch_size: int = within(32, 1, 4096)
    learning_rate: float = 1.5e-3
    min_known: float = within(0.95, 0, 1)
    min_seen: float = within(0.7, 0, 1)
    max_unseen: float = within(0.2, 0, 1)
    max_shuffled: float = within(0.45, 0, 1)

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "VQAWorldConfig.hidden_size must be a multiple of num_heads, got "
                f"hidden_size={self.hidden_size} and num_heads={self.num_heads}."
            )
        if self.forget_owners + self.retain_owners > self.pictures:
            raise ValueError(
                f"VQAWorldConfig asks for the owners of {self.forget_owners} + {self.retain_owners} pictures and has "
                f"{self.pictures}. Raise `pictures`, or lower `forget_owners` or `retain_owners`."
            )
