# SPDX-License-Identifier: Apache-2.0
"""What a method needs of a role's rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..fused.predicted import Predicted


# The name of the model as it entered the trainer; other frozen models have names of their own.
REFERENCE = "reference"


@dataclass(frozen=True)
class Need:
    """What a method reads of one role's rows. Without any argument: the log-probabilities of their labels.

    Args:
        function (`Callable`, *optional*): of every predicted token's logits, a [`~hf_unlearn.fused.tile_rows.RowFn`];
            mean over a row's tokens, then over rows. Among its statistics are `logps`, the log-probabilities of the
            labels.
        reference (`tuple[str, ...]`): names of the frozen models that the rows are compared with. Each gives what the
            role's own rows give: log-probabilities, predictions, a layer's output.
        compares (`bool`): whether `function` reads their logits; without, the method reads their states alone.
        kl (`bool`): KL(reference || model) in closed form; log-probabilities are then for logging, without a gradient.
        layer (`bool`): the output of the layer that the path ends at, at every real token.
        states (`bool`): the last hidden states at predicted tokens, the references' too.
        lens (`bool`): the output of every decoder layer at predicted tokens, and the log-probabilities of the labels
            that the final norm and the head read from it.
        modalities (`bool`): means over the row's picture and over its text.
        columns (`int`, *optional*): `function` sees no more of the vocabulary than so many leading entries.
        weigh (`Callable`, *optional*): from the function's statistics, name to `[N]`, and [`Predicted`] to weights
            `[N]` that the function is then given; costs the head's product once more.
        factors (`Callable`, *optional*): from [`Predicted`] to constants `[N]` that the function's values are summed
            with, in place of the mean over a row's tokens, then over rows.
        changes (`Callable`, *optional*): a [`~hf_unlearn.forward.head_input.StatesFn`], what the head is to read in
            place of the role's states while the model trains; it needs the roles that it looks at in the same pass.
        stands_for (`str`, *optional*): the role that what frozen models say of these rows counts for, token for token;
            the policy does not read the rows.
    """

    function: Callable | None = None
    reference: tuple[str, ...] = ()
    compares: bool = True
    kl: bool = False
    layer: bool = False
    states: bool = False
    lens: bool = False
    modalities: bool = False
    columns: int | None = None
    weigh: Callable | None = None
    factors: Callable | None = None
    changes: Callable | None = None
    stands_for: str | None = None

    def __post_init__(self):
        if isinstance(self.reference, str):
            object.__setattr__(self, "reference", (self.reference,))
        if self.kl and REFERENCE not in self.reference:
            raise ValueError(f"kl=True compares with {REFERENCE!r}, and reference={self.reference}. Name it there.")

    @property
    def whole(self) -> bool:
        """Whether the head's whole predictions are read, not the log-probabilities of labels alone."""
        return self.kl or self.function is not None

    @property
    def from_head(self) -> bool:
        """Whether rows have to go as far as the model's head."""
        return self.whole or not self.layer

    def factors_of(self, tokens: Predicted) -> Tensor:
        """`[N]`, what the values of predicted tokens are summed with."""
        return tokens.row_weights if self.factors is None else self.factors(tokens)

    @property
    def kept(self) -> tuple[str, ...]:
        """What a frozen model has to give of the role's rows: fields of
        [`~hf_unlearn.forward.role_rows.ReferenceRows`]. Whole predictions follow from hidden states."""
        if self.layer:
            return ("states", "hidden") if self.whole else ("states",)
        return ("hidden",) if self.whole else ("token_logps",)


Needs = Mapping[str, Need]

LOGPS = Need()
KL = Need(kl=True, reference=(REFERENCE,))
STATES = Need(layer=True)
STATES_KL = Need(layer=True, kl=True, reference=(REFERENCE,))


def roles_comparing(needs: Needs, name: str = REFERENCE) -> set[str]:
    """The roles whose rows are compared with a frozen model."""
    return {role for role, need in needs.items() if name in need.reference}


def names_of(needs: Needs) -> list[str]:
    """The frozen models that rows are compared with, each once."""
    return list(dict.fromkeys(name for need in needs.values() for name in need.reference))
