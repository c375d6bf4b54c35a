# SPDX-License-Identifier: Apache-2.0
"""From rows to what the losses need of them: what every path through a model has in common."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..fused.head import unwrapped
from ..fused.predicted import Predicted
from .head_input import changed_inputs
from .lens import final_norm
from .needs import LOGPS, REFERENCE, Need, Needs
from .passes import SHAPES, Parts, Pass
from .real_tokens import RealTokens
from .role_rows import ReferenceRows, References, RoleRows
from .shifts import Shifts


# What a pass gives: by role and name, or, for statistics of a role's function, by role, `STATS` and name.
Values = dict[tuple[str, ...], Tensor]
STATS = "stats"


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
        # A `FrozenPrefix`: layers whose states are on disk, once some were found.
        self.prefix: Any = None
        # What is between the last layer and the head, once a role's layers were read.
        self.norm: nn.Module | None = None
        # Layers whose output an add-on may change, and what it adds to it now.
        self.shifted_layers: tuple[int, ...] = ()
        self.shifts: Shifts | None = None

    def policy(self, model: nn.Module, parts: Parts, references: References) -> dict[str, RoleRows]:
        """Rows of all roles through the policy.

        Args:
            model (`nn.Module`): as the trainer calls it, wrapped.
            parts (`Parts`): role to its rows of a batch.
            references (`References`): of the roles that need them.
        """
        parts = {role: part for role, part in parts.items() if self.reads(role)}
        tokens = {role: self.tokens_of(part) for role, part in parts.items()}
        values: Values = {}
        for number, call in enumerate(self.passes(parts, tokens)):
            with self._frozen(call), self._shifted(model, parts, number), self._changed(model, call):
                values |= self.policy_values(model, call, tokens, references)
        found = {}
        for role, part in parts.items():
            own = {name[1:]: value for name, value in values.items() if name[0] == role}
            found[role] = self.rows_of(part, tokens[role], own, references.get(role, {}))
        return found

    def reads(self, role: str) -> bool:
        """Whether the policy reads a role's rows, or frozen models alone."""
        need = self.needs.get(role)
        return need is None or need.stands_for is None

    @torch.no_grad()
    def reference(self, model: nn.Module, parts: Parts) -> dict[str, ReferenceRows]:
        """Rows of the given roles through a reference model."""
        tokens = {role: self.tokens_of(part) for role, part in parts.items()}
        found: dict[str, ReferenceRows] = {}
        for call in self.passes(parts, tokens):
            with self._frozen(call):
                found |= self.reference_rows(model, call, tokens)
        return found

    def passes(self, parts: Parts, tokens: Mapping[str, Predicted]) -> list[Pass]:
        """The calls of the model for a step's rows."""
        return SHAPES[self.shape](parts, tokens)

    def tokens_of(self, part: Mapping[str, Tensor]) -> Predicted:
        """The tokens of a role's rows that this path reads."""
        return Predicted.of(part["labels"])

    def rows_of(self, part, tokens, values: Values, references: Mapping[str, ReferenceRows]) -> RoleRows:
        """What a method sees of one role.

        Args:
            part (`Mapping[str, Tensor]`): its rows of a batch.
            tokens ([`Predicted`]): of [`~Forward.tokens_of`].
            values (`Values`): its own, without the role in their names.
            references (`Mapping[str, ReferenceRows]`): what each frozen model says, by the model's name.
        """
        reference = references.get(REFERENCE, ReferenceRows())
        stats = {name[1]: value for name, value in values.items() if name[0] == STATS}
        own = {name[0]: value for name, value in values.items() if name[0] != STATS}
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
            layer_states=own.get("layer_states"),
            layer_logps=own.get("layer_logps"),
            modalities=own.get("modalities"),
            references=references,
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

    def _shifted(self, model: nn.Module, parts: Parts, number: int):
        """What an add-on adds to layers' outputs in a pass, of `parts` by its number."""
        if self.shifts is None:
            return nullcontext()
        real = self.passes(parts, {role: RealTokens.of(part) for role, part in parts.items()})[number]
        return self.shifts.entered(model, real)

    def _changed(self, model: nn.Module, call: Pass):
        """What methods do to states before the head reads them: in training, and not to a reference."""
        needs = {role: self.needs[role] for role in call.picks}
        changes = {role: need.changes for role, need in needs.items() if need.changes is not None}
        if not changes or not model.training:
            return nullcontext()
        return changed_inputs(*self.reader(model), call.picks, changes)

    def reader(self, model: nn.Module) -> tuple[nn.Module, int]:
        """The module from states to logits, and how many leading dimensions of its input count rows."""
        return unwrapped(model).get_output_embeddings(), 2

    @property
    def lowest_read(self) -> int | None:
        """The lowest decoder layer whose output is read; `None` where none is."""
        return 0 if any(need.lens for need in self.needs.values()) else None

    def ends_for(self, role: str) -> int | None:
        """The last decoder layer that anything read of a role's rows depends on; `None` for the head."""
        return None

    def find_norm(self, model: nn.Module) -> nn.Module | None:
        """What stands between the model's last decoder layer and its head, if a role's layers are read; seen once."""
        if self.norm is None and any(need.lens for need in self.needs.values()):
            self.norm = final_norm(model, self.reader(model)[0])
        return self.norm

    def check_packing(self, model: nn.Module, parts: Parts, half_precision: bool) -> None:
        """Compares packed rows with padded ones: not every attention keeps rows apart by their positions.

        Args:
            model (`nn.Module`): as the trainer calls it, in evaluation mode.
            parts (`Parts`): a batch.
            half_precision (`bool`): whether the model computes in less than float32; then more difference is rounding.

        Raises:
            `ValueError`: if the two disagree.
        """
        found = {shape: self.seen(model, parts, shape) for shape in ("one", self.shape)}
        for role in parts:
            padded, packed = (found[shape][role] for shape in ("one", self.shape))
            # Of rows that are known the log-probabilities are near 0, and half precision rounds by more than they are.
            scale = padded.abs().mean().clamp(min=1.0 if half_precision else 1e-6)
            error = ((packed - padded).abs().mean() / scale).item()
            if not error <= (5e-2 if half_precision else 1e-4):
                raise ValueError(
                    f"forward_passes='packed': packed {role} rows are not kept apart by this model's attention "
                    f"(relative difference {error:.2g}). Take forward_passes='auto', or another "
                    "`attn_implementation`."
                )

    def seen(self, model: nn.Module, parts: Parts, shape: str) -> dict[str, Tensor]:
        """Values to compare two shapes by."""
        path = type(self)(dict.fromkeys(parts, LOGPS), shape)
        return {role: found.token_logps for role, found in path.reference(model, parts).items()}

    def policy_values(self, model: nn.Module, call: Pass, predicted: Mapping[str, Predicted], references) -> Values:
        """One call of the policy: what each of its roles needs, with gradients."""
        raise NotImplementedError

    def reference_rows(self, model: nn.Module, call: Pass, predicted: Mapping[str, Predicted]):
        """One call of a frozen model: role to the [`ReferenceRows`] that it has to give, without gradients."""
        raise NotImplementedError


def picked_rows(values: Tensor, call: Pass) -> list[tuple[str, Tensor]]:
    """`[B, T, ...]` at the predicted tokens of each role, `[N, ...]`."""
    flat = values.flatten(0, 1)
    return [(role, flat.index_select(0, picks)) for role, picks in call.picks.items()]


def function_values(role: str, apply: Callable, need: Need, tokens: Predicted, states: Tensor | None) -> Values:
    """What a role's function gives."""
    weights = None
    if need.weigh is not None:
        with torch.no_grad():
            weights = need.weigh(apply()[1], tokens)
    value, stats = apply(weights)
    named = {(role, STATS, name): found for name, found in stats.items()}
    return named | {(role, "value"): value} | ({(role, "states"): states} if need.states else {})
