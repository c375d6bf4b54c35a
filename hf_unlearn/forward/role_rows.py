# SPDX-License-Identifier: Apache-2.0
"""What the losses get of one role's rows, and what the reference says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..fused import Head
from ..fused.predicted import Predicted


@dataclass
class ReferenceRows:
    """What the reference says of one role's `N` predicted tokens, as far as it was asked.

    Args:
        token_logps (`Tensor`, *optional*): `[N]`.
        hidden (`Tensor`, *optional*): `[N, d]`, last hidden states, to go with `head`.
        head ([`Head`], *optional*): the reference's; left out where it is the policy's own and not trained.
        logits (`Tensor`, *optional*): `[N, V]`.
        states (`Tensor`, *optional*): a layer's output at every real token, `[N real tokens, d]`.
    """

    token_logps: Tensor | None = None
    hidden: Tensor | None = None
    head: Head | None = None
    logits: Tensor | None = None
    states: Tensor | None = None


# Role to what each frozen model says of its rows, by the model's name.
References = Mapping[str, Mapping[str, ReferenceRows]]


@dataclass
class RoleRows:
    """What a method sees of one role.

    Args:
        batch (`Mapping[str, Tensor]`): `input_ids`, `attention_mask`, `labels` `[B, T]` and `index` `[B]`.
        predicted ([`Predicted`]): the `N` tokens that are predicted.
        token_logps (`Tensor`): `[N]`; without a gradient where the method asked for `kl`.
        ref_token_logps (`Tensor`, *optional*): `[N]`, the reference's.
        kl_to_reference (`Tensor`, *optional*): KL(reference || model), mean over predicted tokens, a scalar.
        value (`Tensor`, *optional*): a [`Need`]'s function's, mean over a row's tokens, then over rows; a scalar.
        stats (`Mapping[str, Tensor]`): its statistics, name to `[N]`, without gradient.
        states, ref_states (`Tensor`, *optional*): `[N, d]`, last hidden states, the model's and the reference's.
        layer_states (`Tensor`, *optional*): `[N, layers, d]`, the output of every decoder layer.
        layer_logps (`Tensor`, *optional*): `[N, layers]`, log-probabilities of the labels, read from these; the last
            column is `token_logps`.
        modalities (`tuple[Tensor, Tensor]`, *optional*): means over a row's picture and over its text, `[B, d]` each.
        noted (`dict[str, Tensor]`): scalars that the method wants logged of the role.
        references (`Mapping[str, ReferenceRows]`): what each frozen model says of the rows, by its name; `ref_...` is
            that of `reference`.
        tied (`dict[str, RoleRows]`): rows of the roles that are tied to this one, such as `alternate`, row for row.
    """

    batch: Mapping[str, Tensor]
    predicted: Predicted
    token_logps: Tensor
    ref_token_logps: Tensor | None = None
    kl_to_reference: Tensor | None = None
    value: Tensor | None = None
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    states: Tensor | None = None
    ref_states: Tensor | None = None
    layer_states: Tensor | None = None
    layer_logps: Tensor | None = None
    modalities: tuple[Tensor, Tensor] | None = None
    noted: dict[str, Tensor] = field(default_factory=dict)
    references: Mapping[str, ReferenceRows] = field(default_factory=dict)
    tied: dict[str, "RoleRows"] = field(default_factory=dict)

    @property
    def logps(self) -> Tensor:
        """Log-probability of each row's labels, `[B]`, sums over tokens."""
        return self.predicted.spread(self.token_logps).sum(-1)

    @property
    def ref_logps(self) -> Tensor:
        """The reference's log-probability of each row's labels, `[B]`."""
        return self.predicted.spread(self.ref_token_logps).sum(-1)

    def logps_of(self, name: str) -> Tensor:
        """A frozen model's log-probability of each row's labels, `[B]`."""
        return self.predicted.spread(self.references[name].token_logps).sum(-1)

    @property
    def nll(self) -> Tensor:
        """Negative log-likelihood, mean over the role's predicted tokens; a scalar, 0 where there are none."""
        return -self.token_logps.sum() / max(len(self.token_logps), 1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values [N]` over each row's tokens, then over rows; a scalar."""
        return (values * self.predicted.row_weights).sum()

    def observed(self) -> dict[str, Tensor]:
        """What is logged of the role beside its term."""
        means = {name: self.mean(values) for name, values in self.stats.items() if name != "logps"}
        return {"nll": self.nll, "logps": self.logps.mean(), **means, **self.noted}
