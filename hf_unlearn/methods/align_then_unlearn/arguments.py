# SPDX-License-Identifier: Apache-2.0
"""Settings of Align-then-Unlearn beside those that every method has."""

from dataclasses import dataclass, field
from itertools import pairwise

from ...checks import check_choice, check_number, check_whole
from .encoder import POOLINGS
from .head import VARIANTS


THRESHOLD_MODES = ("cosine", "quantile")
# The published layer of Phi-3-mini: the 29th of 32.
PUBLISHED_DEPTH = 29 / 32


@dataclass
class AlignArguments:
    """Concept, encoder, head and stages. `check_align` is called by the config that has these fields."""

    concept: list[str] | None = field(default=None, metadata={"help": "Names of the concept to forget."})
    concept_aliases: list[str] | None = field(
        default=None,
        metadata={"help": "Other names of the concept; a prediction is compared with the nearest of all."},
    )
    concept_descriptions: list[str] | None = field(
        default=None,
        metadata={"help": "Descriptions of the concept, compared in the same way; they need not occur in the rows."},
    )
    encoder_name_or_path: str = field(
        default="sentence-transformers/all-mpnet-base-v2",
        metadata={"help": "Text encoder (transformers): a folder or Hub id, or `world/encoder`."},
    )
    encoder_pooling: str = field(
        default="mean", metadata={"help": "Pooling of the encoder: `mean` of the tokens, or the `first` (CLS)."}
    )
    window_tokens: int = field(default=8, metadata={"help": "Number k of encoder tokens that a prediction covers."})
    layer_id: int | None = field(
        default=None,
        metadata={
            "help": "Decoder layer that the head reads, counted from 0. Default: 28 of 32, or the same relative depth."
        },
    )
    head_size: int = field(default=768, metadata={"help": "Width of the head."})
    head_layers: int = field(default=6, metadata={"help": "Layers of the head."})
    head_heads: int = field(default=8, metadata={"help": "Attention heads of the head."})
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout of the head, in alignment stages."})
    head_variant: str = field(
        default="causal",
        metadata={"help": "`causal`: later tokens do not change a prediction; `published`: they do."},
    )
    head_learning_rate: float = field(
        default=1e-4, metadata={"help": "Adam's learning rate for the head, in alignment stages."}
    )
    thresholds: list[float] = field(
        default_factory=lambda: [0.9, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2],
        metadata={
            "help": "Thresholds of the rounds, decreasing: tokens with a larger cosine to the concept contribute to "
            "the loss."
        },
    )
    threshold_mode: str = field(
        default="cosine",
        metadata={
            "help": "Unit of `thresholds`: a `cosine`, or a `quantile` of the head's cosines in the forget rows at "
            "the start of the round (0.9: a tenth of the tokens contributes). The scale of cosines depends on "
            "the encoder."
        },
    )
    first_align_steps: int = field(default=15_000, metadata={"help": "Steps of the first alignment."})
    align_steps: int = field(default=1000, metadata={"help": "Steps of every later alignment."})
    unlearn_steps: int = field(default=1000, metadata={"help": "Steps of every unlearning stage."})

    def check_align(self) -> None:
        """Checks the fields, and sets `max_steps` to the stages' steps where it is left out.

        Raises:
            `ValueError`: naming the first field that is wrong.
        """
        self._check_concept_and_head()
        self._check_thresholds()
        for name in ("first_align_steps", "align_steps", "unlearn_steps"):
            check_whole(name, getattr(self, name), at_least=1)
        rounds = len(self.thresholds)
        steps = self.first_align_steps + (rounds - 1) * self.align_steps + rounds * self.unlearn_steps
        if self.max_steps > steps:
            raise ValueError(
                f"max_steps={self.max_steps}; the stages have {steps} steps. Leave it out, or give fewer."
            )
        if self.max_steps <= 0:
            self.max_steps = steps
        if self.max_forget_loss is not None:
            raise ValueError(
                "max_forget_loss watches log-likelihoods, which Align-then-Unlearn does not compute. Leave it out."
            )
        if self.forward_passes == "packed":
            raise ValueError("forward_passes='packed' is not possible here: the head reads rows. Leave it out.")

    def layer_of(self, count: int) -> int:
        """`layer_id`, or the default in a model of `count` layers."""
        return max(round(PUBLISHED_DEPTH * count) - 1, 0) if self.layer_id is None else self.layer_id

    def _check_concept_and_head(self) -> None:
        for name in ("concept", "concept_aliases", "concept_descriptions"):
            texts = _listed(getattr(self, name))
            if texts is not None and not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(f"{name}={getattr(self, name)!r}; give texts that are not empty.")
            setattr(self, name, texts)
        if not self.concept:
            raise ValueError("No concept is named. Give `concept`: the name of what is to be forgotten.")
        check_choice("encoder_pooling", self.encoder_pooling, POOLINGS)
        check_choice("head_variant", self.head_variant, VARIANTS)
        for name in ("window_tokens", "head_size", "head_layers", "head_heads"):
            check_whole(name, getattr(self, name), at_least=1)
        if self.head_size % self.head_heads:
            raise ValueError(f"head_size={self.head_size} is no multiple of head_heads={self.head_heads}.")
        check_number("head_dropout", self.head_dropout, at_least=0)
        if self.head_dropout >= 1:
            raise ValueError(f"head_dropout={self.head_dropout}; give less than 1.")
        check_number("head_learning_rate", self.head_learning_rate, above=0)

    def _check_thresholds(self) -> None:
        check_choice("threshold_mode", self.threshold_mode, THRESHOLD_MODES)
        self.thresholds = _listed(self.thresholds) or []
        low = 0 if self.threshold_mode == "quantile" else -1
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in self.thresholds)
        in_range = numbers and all(low <= x <= 1 for x in self.thresholds)
        if not self.thresholds or not in_range:
            raise ValueError(f"thresholds={self.thresholds}; give numbers from {low} to 1, one a round.")
        if not all(later < earlier for earlier, later in pairwise(self.thresholds)):
            raise ValueError(
                f"thresholds={self.thresholds} do not decrease: a round that is not stricter than the one before it "
                "pushes nothing. Give each smaller than the last."
            )


def _listed(given):
    """A list of what was given: YAML and Python let one value stand for a list of it."""
    return given if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
