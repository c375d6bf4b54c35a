# SPDX-License-Identifier: Apache-2.0
"""Alternate preference optimisation (AltPO, https://huggingface.co/papers/2409.13474): DPO with answers that the model
itself makes up as the preferred ones."""

from dataclasses import dataclass, field
from typing import ClassVar

from .dpo import DPOUnlearnConfig, DPOUnlearnTrainer


INSTRUCTION = (
    "Give a different answer to the same question. It must be as plausible as the one above and contradict its facts."
)


@dataclass
class AltPOConfig(DPOUnlearnConfig):
    """Settings of [`AltPOTrainer`]. The defaults are the published ones, `beta` and weights those of its code; the
    authors search `beta` in 0.05, 0.1, 0.5 and `retain_weight` in 1, 2, 5. Their instruction is worded otherwise."""

    DEFAULT_SOURCE: ClassVar[str | None] = "sampled"

    num_alternates: int = field(
        default=5, metadata={"help": "Answers sampled for a forget row; each epoch pairs it with the next of them."}
    )
    sample_instruction: str | None = field(
        default=INSTRUCTION,
        metadata={
            "help": "Asked after the forget row's own answer, which the model then gives another one for; null asks "
            "the row's prompt alone."
        },
    )


class AltPOTrainer(DPOUnlearnTrainer):
    """Raises answers that the model made up over the forget answer, both against the reference's (see
    [`~hf_unlearn.losses.dpo_unlearn_loss`]). They are sampled before training and kept on disk. Ten epochs with five
    answers a row are two of the published code, which makes every answer a row."""

    config_class = AltPOConfig
    method = "altpo"
    paper = "2409.13474"
