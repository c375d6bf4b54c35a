# SPDX-License-Identifier: Apache-2.0
"""What a method may ask of a role's rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


# What a method may ask of a role's rows: token log-probabilities, or KL(reference || model) (and, for logging,
# log-probabilities without a gradient), or a function of its own.
LOGPS, KL = "logps", "kl"


@dataclass(frozen=True)
class RowFunction:
    """Asks for a function of every predicted token's logits: mean over a row's tokens, then over rows.

    Args:
        function (`Callable`): a [`~hf_unlearn.fused.rows.RowFn`]; among its numbers to look at are `logps`, the
            log-probabilities of the labels.
        compares (`bool`): it reads the reference's logits.
        states (`bool`): the last hidden states are asked for too; and the reference's, where there is one.
        modalities (`bool`): means over the row's picture and over its text are asked for too.
        columns (`int`, *optional*): it sees no more of the vocabulary than so many leading entries.
        weigh (`Callable`, *optional*): from the function's numbers, name to `[N]`, and [`Predicted`] to weights `[N]`
            that the function is then given; costs the head's product once more.
        changes (`Callable`, *optional*): a [`~hf_unlearn.forward.head_input.StatesFn`], what the head is to read in
            place of the role's states while the model trains; it needs the roles that it looks at in the same pass.
    """

    function: Callable
    compares: bool = False
    states: bool = False
    modalities: bool = False
    columns: int | None = None
    weigh: Callable | None = None
    changes: Callable | None = None


Needs = Mapping[str, "str | RowFunction"]


def of_whole_prediction(need) -> bool:
    """Whether a reference that is asked this has to give whole predictions, not numbers of labels."""
    return need == KL or isinstance(need, RowFunction)
