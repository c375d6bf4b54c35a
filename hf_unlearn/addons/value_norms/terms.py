# SPDX-License-Identifier: Apache-2.0
"""What is asked of each role's values, by name."""

from dataclasses import dataclass


ZERO, REFERENCE, UNLEARNED = "zero", "reference", "unlearned"
NORM, COSINE, LOG = "norm", "cosine", "log"


@dataclass(frozen=True)
class Term:
    """What is asked of one role's values.

    Args:
        target (`str`): whose values they should be like: nobody's (`zero`), the reference's or the unlearned model's.
        measure (`str`): `norm` (absolute difference of norms), `cosine` (1 - cosine of the vectors), or `log`
            (absolute logarithm of the norms' ratio).
        weight (`float`): beside the penalty's own.
        growth (`float`): added to the weight by the end of training.
    """

    target: str
    measure: str = NORM
    weight: float = 1.0
    growth: float = 0.0

    def weight_at(self, progress: float) -> float:
        """The weight after a share of training."""
        return self.weight + self.growth * progress


def terms_of_mode(mode: str, utility_weight: float) -> dict[str, Term]:
    """Role to what a mode asks of its values; `utility_weight` is for `utility_preserving`."""
    forget = Term(UNLEARNED)
    return {
        "fixed": {"forget": Term(ZERO)},
        "reference": {"forget": forget, "poisoned": Term(REFERENCE), "retain": Term(REFERENCE)},
        "utility_preserving": {"forget": forget, "poisoned": Term(REFERENCE, COSINE, utility_weight)},
        "adaptive": {"forget": forget, "poisoned": Term(REFERENCE, LOG, 0.1, growth=0.3)},
        "hybrid": {"forget": forget, "poisoned": Term(REFERENCE, NORM, 0.3)},
    }[mode]


MODES = ("fixed", "reference", "utility_preserving", "adaptive", "hybrid")
