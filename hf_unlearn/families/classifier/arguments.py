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
            "help": "What a classifier's logits say: of each class by itself (`bernoulli`, as in ViLT), or of one "
            "class among all (`softmax`). `auto` takes what the model's own loss takes."
        },
    )

    def check_classifier(self) -> None:
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
