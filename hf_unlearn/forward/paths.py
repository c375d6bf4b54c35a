# SPDX-License-Identifier: Apache-2.0
"""What the losses need of a forward pass: the predicted tokens' log-probabilities and divergences from the reference.

Two paths to the same numbers. [`FusedForward`] goes from last hidden states through the LM head in tiles, at
predicted tokens only; [`LogitsForward`] takes the model's logits `[B, T, V]`. The second is there for models whose
head cannot be taken apart, and to check the first against.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import fused, losses
from ..fused import Head, TileRows
from ..fused.head import unwrapped
from .head_input import changed_inputs, inputs_of
from .needs import KL, LOGPS, Needs, RowFunction, of_whole_prediction
from .passes import SHAPES, Parts, Pass
from .predicted import Predicted


if TYPE_CHECKING:
    from .frozen import FrozenPrefix

logger = logging.getLogger(__name__)


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


@dataclass
class RoleRows:
    """What a method sees of one role.

    Args:
        batch (`Mapping[str, Tensor]`): `input_ids`, `attention_mask`, `labels` `[B, T]` and `index` `[B]`.
        predicted ([`Predicted`]): the `N` tokens that are predicted.
        token_logps (`Tensor`): `[N]`; without a gradient where the method asked for `kl`.
        ref_token_logps (`Tensor`, *optional*): `[N]`, the reference's.
        kl_to_reference (`Tensor`, *optional*): KL(reference || model), mean over predicted tokens, a scalar.
        value (`Tensor`, *optional*): a [`RowFunction`]'s, mean over a row's tokens, then over rows; a scalar.
        stats (`Mapping[str, Tensor]`): its numbers to look at, name to `[N]`, without gradient.
        states, ref_states (`Tensor`, *optional*): `[N, d]`, last hidden states, the model's and the reference's.
        modalities (`tuple[Tensor, Tensor]`, *optional*): means over a row's picture and over its text, `[B, d]` each.
        noted (`dict[str, Tensor]`): scalars that the method wants logged of the role.
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
    modalities: tuple[Tensor, Tensor] | None = None
    noted: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logps(self) -> Tensor:
        """Log-probability of each row's labels, `[B]`, sums over tokens."""
        return self.predicted.spread(self.token_logps).sum(-1)

    @property
    def ref_logps(self) -> Tensor:
        """The reference's log-probability of each row's labels, `[B]`."""
        return self.predicted.spread(self.ref_token_logps).sum(-1)

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


class Forward:
    """A path from rows to [`RoleRows`]. `fused` says whether it takes the head apart, `keeps_predictions` whether what
    the reference says may be kept on disk.

    Args:
        needs (`Needs`): role to what the method asks of its rows.
        shape (`str`): how the rows go through the model, a key of [`SHAPES`].
    """

    fused = False
    keeps_predictions = True

    def __init__(self, needs: Needs, shape: str = "one"):
        # What else than rows and weights decides the reference's values; part of their key on disk.
        self.computed: dict[str, Any] = {}
        self.needs, self.shape = dict(needs), shape
        # Layers whose states are on disk, once the trainer found some.
        self.prefix: FrozenPrefix | None = None

    def policy(self, model: nn.Module, parts: Parts, references: Mapping[str, ReferenceRows]) -> dict[str, RoleRows]:
        """Rows of all roles through the policy.

        Args:
            model (`nn.Module`): as the trainer calls it, wrapped.
            parts (`Parts`): role to its rows of a batch.
            references (`Mapping[str, ReferenceRows]`): of the roles that need them.
        """
        tokens = {role: self.tokens_of(part) for role, part in parts.items()}
        values: dict[str, Tensor] = {}
        for call in self.passes(parts, tokens):
            with self._frozen(call), self._changed(model, call):
                values |= self._policy_values(model, call, tokens, references)
        return {role: self.rows_of(role, parts[role], tokens[role], values, references.get(role)) for role in parts}

    @torch.no_grad()
    def reference(self, model: nn.Module, parts: Parts) -> dict[str, ReferenceRows]:
        """Rows of the given roles through a reference model."""
        tokens = {role: self.tokens_of(part) for role, part in parts.items()}
        found: dict[str, ReferenceRows] = {}
        for call in self.passes(parts, tokens):
            with self._frozen(call):
                found |= self._reference_rows(model, call, tokens)
        return found

    def passes(self, parts: Parts, tokens: Mapping[str, Predicted]) -> list[Pass]:
        """The calls of the model for a step's rows."""
        return SHAPES[self.shape](parts, tokens)

    def tokens_of(self, part: Mapping[str, Tensor]) -> Predicted:
        """The tokens of a role's rows that this path reads."""
        return Predicted.of(part["labels"])

    def rows_of(self, role: str, part, tokens, values, reference: ReferenceRows | None):
        """What a method sees of a role."""
        reference = reference or ReferenceRows()
        own = {name.removeprefix(f"{role}."): x for name, x in values.items() if name.startswith(f"{role}.")}
        stats = {name.removeprefix("stats."): x for name, x in own.items() if name.startswith("stats.")}
        return RoleRows(
            part,
            tokens,
            token_logps=stats["logps"] if "value" in own else own["logps"],
            ref_token_logps=reference.token_logps,
            kl_to_reference=own.get("kl"),
            value=own.get("value"),
            stats=stats,
            states=own.get("states"),
            ref_states=None if "states" not in own else reference.hidden,
            modalities=own.get("modalities"),
        )

    def probe(self, model: nn.Module) -> Tensor | None:
        """Tries the path on a few tokens, before the first step and on all ranks.

        Args:
            model (`nn.Module`): as the trainer calls it.

        Returns:
            `Tensor`: some token states `[N, d]`, of the width and dtype that all will have; `None` where none
            are read.

        Raises:
            `ValueError`: if the model cannot be taken apart as this path does.
        """

    def _frozen(self, call: Pass):
        if self.prefix is None:
            return nullcontext()
        return self.prefix.entered(call, call.inputs["input_ids"].device)

    def _changed(self, model: nn.Module, call: Pass):
        """What methods do to states before the head reads them: in training, and not to a reference."""
        needs = {role: self.needs[role] for role in call.picks}
        changes = {role: need.changes for role, need in needs.items() if getattr(need, "changes", None) is not None}
        if not changes or not model.training:
            return nullcontext()
        return changed_inputs(*self.reader(model), call.picks, changes)

    def reader(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The module from states to logits, and how many leading dimensions of its input count rows."""
        return unwrapped(model).get_output_embeddings(), 2

    def check_packing(self, model: nn.Module, parts: Parts, half_precision: bool) -> None:
        """Compares packed rows with padded ones: not every attention keeps rows apart by their positions.

        Args:
            model (`nn.Module`): as the trainer calls it, in evaluation mode.
            parts (`Parts`): a batch.
            half_precision (`bool`): whether the model computes in less than float32; then more difference is rounding.

        Raises:
            `ValueError`: if the two disagree.
        """
        found = {shape: self._seen(model, parts, shape) for shape in ("one", self.shape)}
        for role in parts:
            padded, packed = (found[shape][role] for shape in ("one", self.shape))
            error = ((packed - padded).abs().mean() / padded.abs().mean().clamp(min=1e-6)).item()
            if not error <= (1e-2 if half_precision else 1e-4):
                raise ValueError(
                    f"forward_passes='packed': packed {role} rows are not kept apart by this model's attention "
                    f"(relative difference {error:.2g}). Take forward_passes='auto', or another "
                    "`attn_implementation`."
                )

    def _seen(self, model: nn.Module, parts: Parts, shape: str) -> dict[str, Tensor]:
        """Values to compare two shapes by."""
        path = type(self)(dict.fromkeys(parts, LOGPS), shape)
        return {role: found.token_logps for role, found in path.reference(model, parts).items()}

    def _policy_values(self, model, call: Pass, predicted, references) -> dict[str, Tensor]:
        raise NotImplementedError

    def _reference_rows(self, model, call: Pass, predicted) -> dict[str, ReferenceRows]:
        raise NotImplementedError


class FusedForward(Forward):
    """From last hidden states through the head, inside the model's own forward; no `[B, T, V]` anywhere."""

    fused = True

    def probe(self, model):
        return fused.check_head(model)[0]

    def _policy_values(self, model, call, predicted, references):
        def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
            values = {}
            for role, picked in picked_rows(hidden, call):
                labels, need = predicted[role].targets, self.needs[role]
                if isinstance(need, RowFunction):
                    values |= self._function_values(role, picked, head, predicted[role], references.get(role))
                elif need == KL:
                    ref = references[role]
                    loss, logps = fused.row_kl_to_reference(picked, head, ref.hidden, ref.head or head, labels)
                    values |= {f"{role}.kl": loss, f"{role}.logps": logps}
                else:
                    values[f"{role}.logps"] = fused.row_logps(picked, labels, head)
            return values

        return fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)

    def _function_values(self, role: str, hidden: Tensor, head: Head, tokens: Predicted, ref) -> dict[str, Tensor]:
        need, compared = self.needs[role], {}
        if need.compares:
            compared = {"ref_hidden": ref.hidden, "ref_head": ref.head or head}

        def apply(weights: Tensor | None = None):
            return fused.row_values(
                hidden,
                head,
                need.function,
                tokens.targets,
                **compared,
                weights=weights,
                columns=need.columns,
                factors=tokens.row_weights,
            )

        return _named(role, apply, need, tokens, hidden)

    def _reference_rows(self, model, call, predicted):
        heads = []

        def compute(hidden: Tensor, head: Head) -> dict[str, Tensor]:
            heads.append(head)
            return {
                role: picked
                if of_whole_prediction(self.needs[role])
                else fused.row_logps(picked, predicted[role].targets, head)
                for role, picked in picked_rows(hidden, call)
            }

        values = fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)
        return {
            role: ReferenceRows(hidden=value, head=heads[-1])
            if of_whole_prediction(self.needs[role])
            else ReferenceRows(value)
            for role, value in values.items()
        }


class LogitsForward(Forward):
    """From the model's logits."""

    # How labels are read.
    rows_type = TileRows

    def _policy_values(self, model, call, predicted, references):
        values = {}
        logits, states = self._logits_and_states(model, call)
        for role, own in picked_rows(logits, call):
            need = self.needs[role]
            if isinstance(need, RowFunction):
                ref = references.get(role)
                values |= self._function_values(role, own, states.get(role), predicted[role], ref)
                continue
            kl = need == KL
            at = self.rows_type(predicted[role].targets, references[role].logits if kl else None)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not kl):
                values[f"{role}.logps"] = -at.nll(own)
            if kl:
                values[f"{role}.kl"] = at.distillation(own).sum() / max(len(own), 1)
        return values

    def _function_values(self, role: str, logits: Tensor, states, tokens: Predicted, ref) -> dict[str, Tensor]:
        need = self.needs[role]

        def apply(weights: Tensor | None = None):
            ref_logits = ref.logits[:, : need.columns] if need.compares else None
            own = losses.at_least_float32(logits[:, : need.columns])
            values, stats = need.function(own, self.rows_type(tokens.targets, ref_logits, weights))
            return (values * tokens.row_weights).sum(), stats

        return _named(role, apply, need, tokens, states)

    def _reference_rows(self, model, call, predicted):
        logits, states = self._logits_and_states(model, call)
        return {
            role: ReferenceRows(logits=found, hidden=states.get(role))
            if of_whole_prediction(self.needs[role])
            else ReferenceRows(-self.rows_type(predicted[role].targets).nll(found))
            for role, found in picked_rows(logits, call)
        }

    def _logits_and_states(self, model: nn.Module, call: Pass) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, T, V]`, and the head's inputs `[N, d]` of the roles that ask for states."""
        asking = {role for role in call.picks if getattr(self.needs[role], "states", False)}
        with inputs_of(self.reader(model)[0]) if asking else nullcontext([]) as inputs:
            logits = model(**call.inputs, use_cache=False).logits
        states = picked_rows(inputs[-1], call) if asking else ()
        return logits, {role: found for role, found in states if role in asking}


def picked_rows(values: Tensor, call: Pass) -> list[tuple[str, Tensor]]:
    """`[B, T, ...]` at the predicted tokens of each role, `[N, ...]`."""
    flat = values.flatten(0, 1)
    return [(role, flat.index_select(0, picks)) for role, picks in call.picks.items()]


def _named(role: str, apply: Callable, need: RowFunction, tokens: Predicted, states) -> dict[str, Tensor]:
    """What a role's function gives, by the names that [`Forward.rows_of`] looks for."""
    weights = None
    if need.weigh is not None:
        with torch.no_grad():
            weights = need.weigh(apply()[1], tokens)
    value, stats = apply(weights)
    named = {f"{role}.stats.{name}": found for name, found in stats.items()}
    return named | {f"{role}.value": value} | ({f"{role}.states": states} if need.states else {})


def build_forward(model: nn.Module, fused_losses: bool | None, needs: Needs, shape: str) -> Forward:
    """The fused path, or the one over logits where it is asked for or the model's head cannot be taken apart.

    Args:
        model (`nn.Module`): the model, not wrapped yet.
        fused_losses (`bool`, *optional*): `None` takes the fused path where it works.
        needs, shape: see [`Forward`].

    Raises:
        `ValueError`: if `fused_losses` is true and the head does not allow it.
    """
    if fused_losses is False:
        return LogitsForward(needs, shape)
    try:
        fused.head_of(model)
    except ValueError as error:
        if fused_losses:
            raise
        logger.info("Losses are taken over logits: %s", error)
        return LogitsForward(needs, shape)
    return FusedForward(needs, shape)
