# SPDX-License-Identifier: Apache-2.0
"""What an attack is: one score a row, larger for rows that look more like members."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .attack_settings import settings_of


if TYPE_CHECKING:
    from .result import Privacy


class BaseAttack(ABC):
    """Says of every row how much it looks as if the model was trained on it.

    A subclass gives `name` and `compute_scores`; the rest of an evaluation (thresholds, both tails, intervals) is the
    same for all attacks. Directions are fixed, never chosen by looking at the members: a model that has forgotten too
    much scores its forgotten rows *below* unseen ones, and must be seen to do so.

    ```python
    class Length(BaseAttack):
        name = "length"

        def compute_scores(self, model, data):
            return as_subject(model).observe(data).lengths
    ```
    """

    name: str
    # Whether rows without any tie to this attack's preparations can be scored.
    any_rows = True
    # How many rows say as much as one whose score depends on no other row: intervals are of so many times fewer rows.
    design_effect = 1.0

    @abstractmethod
    def compute_scores(self, model: Any, data: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """One score a row, `[n]`, larger for members; NaN where a row has none.

        Args:
            model (`torch.nn.Module` or [`Subject`]):
                The model under attack. In an evaluation always a subject, whose signals are computed once for all
                attacks.
            data (`Sequence[dict]`):
                Rows as the subject takes them.
        """

    def score_sets(self, model: Any, members: Sequence, nonmembers: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """Scores of both sets. An attack that learns from them must score every row out of fold."""
        return self.compute_scores(model, members), self.compute_scores(model, nonmembers)

    def settings(self) -> dict[str, Any]:
        """What scores depend on besides the model and its rows, as JSON. By default the class and all public
        attributes; two results of an attack are compared where it agrees."""
        return settings_of(self)

    def evaluate(self, model: Any, forget: Any, nonmember_data: Any, **kwargs: Any) -> "Privacy":
        """[`evaluate_privacy`] with this attack alone."""
        from . import evaluate_privacy

        return evaluate_privacy(model, forget, nonmember_data=nonmember_data, attacks=[self], **kwargs)
