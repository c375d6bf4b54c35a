# SPDX-License-Identifier: Apache-2.0
"""A path that ends at a decoder layer, the last that is read: what losses over activations need of a forward pass, and
nothing above it."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor, nn

from .. import fused, losses
from ..fused.head import unwrapped
from ..modeling import evaluating
from ..models.activations import captured, layers_of, stopped_after
from .needs import REFERENCE, STATES, Needs
from .path import Forward, Values, picked_rows
from .real_tokens import RealTokens
from .role_rows import ReferenceRows


@dataclass
class LayerRows:
    """What a method sees of one role.

    Args:
        batch (`Mapping[str, Tensor]`): `input_ids`, `attention_mask`, `labels` `[B, T]` and `index` `[B]`.
        tokens ([`RealTokens`]): the `N` tokens that are no padding.
        states (`Tensor`): `[N, d]`, the layer's output; `[N, layers, d]` of a path that reads several.
        ref_states (`Tensor`, *optional*): the reference's, of the same shape.
        kl_to_reference (`Tensor`, *optional*): KL(reference || model), mean over predicted tokens, a scalar.
        references (`Mapping[str, ReferenceRows]`): what each frozen model says of the rows, by its name.
        tied (`dict[str, LayerRows]`): rows of the roles that are tied to this one, row for row.
    """

    batch: Mapping[str, Tensor]
    tokens: RealTokens
    states: Tensor
    ref_states: Tensor | None = None
    kl_to_reference: Tensor | None = None
    references: Mapping[str, ReferenceRows] = field(default_factory=dict)
    tied: dict[str, "LayerRows"] = field(default_factory=dict)

    def observed(self) -> dict[str, Tensor]:
        """What is logged of the role: the mean L2 norm of a token's state."""
        return {"norm": losses.at_least_float32(self.states.detach()).norm(dim=-1).mean()}


class LayerForward(Forward):
    """Rows up to a layer; up to the head only for roles that ask for KL, which should have a pass of their own.

    Args:
        layer (`int` or `Sequence[int]`): whose output is read; of several, those of each, and no role may ask for KL.
        needs (`Needs`): role to a need of the layer's output, alone or with KL.
        shape (`str`): see [`Forward`].
        whole (`bool`): run the whole model and take its logits; slower, to check against.
    """

    def __init__(self, layer: int | Sequence[int], needs: Needs, shape: str = "one", whole: bool = False):
        super().__init__(needs, shape)
        self.several = not isinstance(layer, int)
        self.layers = list(layer) if self.several else [layer]
        # The last that runs.
        self.layer, self.whole = max(self.layers), whole
        # A list also of one: `layer` is what frozen layers below it are kept by (see `FrozenPrefix`).
        self.computed = {"layers": self.layers}
        self.fused = not whole and any(need.kl for need in needs.values())

    @property
    def lowest_read(self):
        return min(self.layers)

    def probe(self, model):
        if self.fused:
            fused.check_head(model)
        ids = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
        part = {"input_ids": ids, "attention_mask": ids + 1, "labels": ids, "index": ids[0]}
        with evaluating(model):
            states = self.seen(model, {"probe": part}, "one")["probe"]
        width = unwrapped(model).config.get_text_config().hidden_size
        if states.shape[-1] != width:
            raise ValueError(
                f"Layer {self.layer} puts out states of {states.shape[-1]} numbers, and the model's hidden_size is "
                f"{width}: methods that read a layer's states cannot be used with this architecture."
            )
        return states

    def ends_for(self, role):
        return None if self.needs[role].from_head else self.layer

    def tokens_of(self, part):
        return RealTokens.of(part)

    def rows_of(self, part, tokens, values, references):
        ref_states = references[REFERENCE].states if REFERENCE in references else None
        return LayerRows(part, tokens, values["states",], ref_states, values.get(("kl",)), references)

    def policy_values(self, model, call, tokens, references):
        return self._values(model, call, tokens, references)

    def reference_rows(self, model, call, tokens):
        heads = []
        values = self._values(model, call, tokens, None, heads)
        return {
            role: ReferenceRows(
                states=values[role, "states"],
                hidden=values.get((role, "hidden")),
                logits=values.get((role, "logits")),
                head=heads[-1] if (role, "hidden") in values else None,
            )
            for role in call.picks
        }

    def _values(self, model: nn.Module, call, tokens, references, heads=None) -> Values:
        """States of all roles and, of those that ask for KL, the divergence from `references`; without references,
        what a reference has to say."""
        asking = [role for role in call.picks if self.needs[role].kl]
        stops = nullcontext() if asking or self.whole else stopped_after(model, self.layer)
        every = layers_of(model)
        with captured({layer: every[layer] for layer in self.layers}) as taken, stops:

            def compute(hidden: Tensor, head) -> Values:
                if heads is not None:
                    heads.append(head)
                values = self._states(taken, call)
                for role, picked in picked_rows(hidden, call):
                    if role in asking:
                        values |= self._of_head(role, picked[tokens[role].scored], head, references)
                return values

            if not self.whole:
                return fused.head_forward(model, {**call.inputs, "use_cache": False}, compute)
            logits = model(**call.inputs, use_cache=False).logits
            values = self._states(taken, call)
            for role, picked in picked_rows(logits, call):
                if role in asking:
                    values |= self._of_logits(role, picked[tokens[role].scored], references)
            return values

    def _states(self, taken: Mapping[int, Tensor], call) -> Values:
        found: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            states = taken[layer]
            if not isinstance(states, Tensor) or states.dim() != 3:
                form = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
                raise ValueError(
                    f"Layer {layer} puts out {form}, not one state for every token `[B, T, d]`: methods that read "
                    "a layer's states cannot be used with this architecture."
                )
            for role, picked in picked_rows(states, call):
                found.setdefault(role, []).append(picked)
        together = partial(torch.stack, dim=1) if self.several else itemgetter(0)
        return {(role, "states"): together(picked) for role, picked in found.items()}

    @staticmethod
    def _of_head(role: str, hidden: Tensor, head, references) -> Values:
        if references is None:
            return {(role, "hidden"): hidden}
        ref = references[role][REFERENCE]
        labels = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        return {(role, "kl"): fused.row_kl_to_reference(hidden, head, ref.hidden, ref.head or head, labels)[0]}

    @staticmethod
    def _of_logits(role: str, logits: Tensor, references) -> Values:
        if references is None:
            return {(role, "logits"): logits}
        mask = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return {(role, "kl"): losses.kl_to_reference(logits, references[role][REFERENCE].logits, mask)}

    def seen(self, model, parts, shape):
        path = copy.copy(self)
        # Rows that are looked at here need not be the run's, whose lower layers are on disk.
        path.shape, path.needs, path.prefix = shape, dict.fromkeys(parts, STATES), None
        return {role: found.states for role, found in path.reference(model, parts).items()}
