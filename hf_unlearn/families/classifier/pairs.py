# SPDX-License-Identifier: Apache-2.0
"""What a model says of a pair of picture and text, and of each alone before the two meet (ViLT)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...forward.needs import REFERENCE
from ...forward.role_rows import ReferenceRows, RoleRows
from ...fused.head import unwrapped
from .forward import ClassForward


TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class PairReference(ReferenceRows):
    """[`~hf_unlearn.forward.role_rows.ReferenceRows`] and `image`, `text` as in [`PairRows`]."""

    image: Tensor | None = None
    text: Tensor | None = None


@dataclass
class PairRows(RoleRows):
    """[`~hf_unlearn.forward.role_rows.RoleRows`] and what stands for each modality alone.

    Args:
        image, ref_image (`Tensor`): `[B, d, h, w]`, the patches as they are embedded.
        text, ref_text (`Tensor`): `[B, T, d]`, the tokens as they are embedded.
    """

    image: Tensor | None = None
    text: Tensor | None = None
    ref_image: Tensor | None = None
    ref_text: Tensor | None = None


class PairForward(ClassForward):
    """A classifier's rows, and the embeddings of their pictures and texts."""

    def policy_values(self, model, call, predicted, references):
        with embedded(model) as seen:
            values = super().policy_values(model, call, predicted, references)
        return values | {(role, name): x[rows] for role, rows in call.picks.items() for name, x in seen.items()}

    def reference_rows(self, model, call, predicted):
        with embedded(model) as seen:
            found = super().reference_rows(model, call, predicted)
        own = {role: {name: x[call.picks[role]] for name, x in seen.items()} for role in found}
        return {role: PairReference(**vars(rows), **own[role]) for role, rows in found.items()}

    def rows_of(self, part, tokens, values, references):
        rows, reference = super().rows_of(part, tokens, values, references), references[REFERENCE]
        own = {name: values[name,] for name in ("image", "text")}
        return PairRows(**vars(rows), **own, ref_image=reference.image, ref_text=reference.text)


@contextmanager
def embedded(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """`image` and `text` of the last call while entered. Read before ViLT picks patches, in an order that it draws."""
    embeddings = vilt_of(model).embeddings
    modules = {"image": embeddings.patch_embeddings, "text": embeddings.text_embeddings}
    seen: dict[str, Tensor] = {}

    def keep(name):
        return lambda module, args, output: seen.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def vilt_of(model: nn.Module) -> nn.Module | None:
    """The part of a model that reads pictures with texts; `None` where there is none that is known."""
    core = unwrapped(model)
    return getattr(getattr(core, "get_base_model", lambda: core)(), "vilt", None)


def derangement(count: int) -> Tensor:
    """A permutation `[count]` in which nothing stays in its place, each with the same chance; from torch's generator.

    Raises:
        `ValueError`: for one thing alone.
    """
    if count < 2:
        raise ValueError(f"{count} row cannot change its text for another's. Give batches of 2 rows or more.")
    places = torch.arange(count)
    while True:
        found = torch.randperm(count)
        if not (found == places).any():
            return found


def with_texts_of(
    part: Mapping[str, Tensor], others: Mapping[str, Tensor], order: Tensor | None = None
) -> dict[str, Tensor]:
    """The rows of `part`, each with the text of a row of `others`: that which `order [B]` names, or in its place."""
    texts = {name: others[name] for name in TEXT_INPUTS if name in part}
    return {**part, **{name: x if order is None else x[order.to(x.device)] for name, x in texts.items()}}
