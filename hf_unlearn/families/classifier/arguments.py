# SPDX-License-Identifier: Apache-2.0
"""Settings that only a classifier reads."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...checks import check_choice


LIKELIHOODS = ("auto", "bernoulli", "softmax")


@dataclass
class ClassifierArguments:
    """What a classifier's logits mean."""

    USED_WITH: ClassVar[dict[str, str]] = {"likelihood": "a classifier"}

    likelihood: str = field(
        default="auto",
        metadata={
            "help": "Meaning of a classifier's logits: each class independently (`bernoulli`, as in ViLT), or one "
            "class among all (`softmax`). `auto` follows the model's own loss."
        },
    )

    def check_classifier(self) -> None:
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
