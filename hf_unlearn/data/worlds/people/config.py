# SPDX-License-Identifier: Apache-2.0
"""What decides a world besides its seed."""

from dataclasses import dataclass

from ..settings import WorldSettings, within
from .questions import ATTRIBUTES
from .sentences import MAX_SENTENCES
from .words import MAX_WORDS


@dataclass(frozen=True)
class WorldConfig(WorldSettings):
    """Sizes of the embedded world, of its models and of their training.

    The defaults give 32 forget, 288 retain and 64 holdout question/answer pairs and two models of 0.85M parameters
    that train in about 35 s together on one idle core.

    Args:
        forget_people (`int`, *optional*, defaults to 4):
            People only the target model is trained on.
        retain_people (`int`, *optional*, defaults to 36):
            People both models are trained on.
        holdout_people (`int`, *optional*, defaults to 8):
            People no model is trained on (the non-members of membership inference).
        facts_per_person (`int`, *optional*, defaults to 8):
            Question/answer pairs per person, 1 to 8.
        perturbed_per_fact (`int`, *optional*, defaults to 4):
            Wrong answers per pair.
        general_sentences (`int`, *optional*, defaults to 96):
            Sentences about no person, which both models are trained on.
        vocab_size (`int`, *optional*, defaults to 1000):
            Upper bound on the tokenizer's vocabulary, at least 300 (256 bytes, 6 special tokens, some merges).
        hidden_size (`int`, *optional*, defaults to 128), num_layers (`int`, *optional*, defaults to 3),
        num_heads (`int`, *optional*, defaults to 4):
            Shape of the Llama. The default has three layers so that a middle one exists.
        steps (`int`, *optional*, defaults to 500), batch_size (`int`, *optional*, defaults to 16),
        learning_rate (`float`, *optional*, defaults to 5e-3):
            Training of each model: AdamW with a warm-up and a cosine decay to zero.
        min_known (`float`, *optional*, defaults to 0.95):
            A build fails unless this fraction of the answers is reproduced exactly: target on forget and retain,
            retrained on retain. 0 turns the check off.
        max_unseen (`float`, *optional*, defaults to 0.05):
            A build fails if the retrained model reproduces more than this fraction of the forget answers.
    """

    forget_people: int = within(4, 1, 1000)
    retain_people: int = within(36, 1, 1000)
    holdout_people: int = within(8, 1, 1000)
    facts_per_person: int = within(8, 1, len(ATTRIBUTES))
    perturbed_per_fact: int = within(4, 1, 10)
    general_sentences: int = within(96, 1, MAX_SENTENCES)
    vocab_size: int = within(1000, 300, 50_000)
    hidden_size: int = within(128, 8, 1024)
    num_layers: int = within(3, 1, 64)
    num_heads: int = within(4, 1, 64)
    steps: int = within(500, 1, 100_000)
    batch_size: int = within(16, 1, 4096)
    learning_rate: float = 5e-3
    min_known: float = within(0.95, 0, 1)
    max_unseen: float = within(0.05, 0, 1)

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"WorldConfig.hidden_size must be a multiple of 2 * num_heads (rotary embeddings need even heads), "
                f"got hidden_size={self.hidden_size} and num_heads={self.num_heads}."
            )
        if self.words_per_person * self.people > MAX_WORDS:
            raise ValueError(
                f"WorldConfig asks for {self.people} people with {self.words_per_person} names and values each, but "
                f"there are only {MAX_WORDS} words. Lower the people, facts_per_person or perturbed_per_fact."
            )

    @property
    def people(self) -> int:
        """People in all sets."""
        return self.forget_people + self.retain_people + self.holdout_people

    @property
    def words_per_person(self) -> int:
        """Two names, and for each fact its value and the wrong ones."""
        return 2 + self.facts_per_person * (1 + self.perturbed_per_fact)
