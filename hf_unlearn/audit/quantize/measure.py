# SPDX-License-Identifier: Apache-2.0
"""Does what was forgotten come back in the weights that are served: quantised, pruned, or merged with others?"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from ..model_checks import UnsoundModelError
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured
from ..robustness.weights import check_not_quantized, merged
from .arguments import QuantizeArguments
from .formats import FORMATS, pruned
from .layers import bitsandbytes_layers, changed_weights, linear_layers, weight_of
from .merge import check_mergeable, is_compared_with, merged_with


MERGE = "merge"


class QuantizeAudit(RobustnessKind):
    """Weights rounded to a format and back, in every linear layer but the head. An adapter is merged first, as it is
    where quantised weights are served."""

    name, arguments = "quantize", QuantizeArguments
    # For the codes that unlearning left as they were.
    reads_others = True

    def check(self, args: QuantizeArguments, prepared) -> None:
        check_not_quantized(args)
        if args.merge is not None:
            check_mergeable(args)

    def read_too(self, args: QuantizeArguments) -> list[str]:
        return [] if args.merge is None else [args.merge]

    def attack(self, model, args: QuantizeArguments, prepared, context) -> Iterator[Measured]:
        served = merged(model)
        layers = linear_layers(served, args.skip)
        about = {"merged": served is not model, "covered": _covered(served, layers)}
        kept = {} if context.original is None else against_original(layers, context.original(), args)
        other = None if args.merge is None else merged(context.load(args.merge))
        for family, changed in changes(served, layers, other, args).items():
            failed = None
            with changed as share:
                try:
                    scores = self.scored_sets(served, args, prepared, context, desc=family)
                except UnsoundModelError:
                    # Too narrow a range for these weights; other formats go on.
                    scores = self.nothing(prepared)
                    failed = f"the model gives no finite number in {family}"
            found = Measured(family, family=family, **scores)
            found.more = {"changed": share, **about, **kept.get(family, {})}
            # The original merged with itself is the original merged alike.
            if share == 0 and not (family.startswith(MERGE) and is_compared_with(args)):
                failed = f"{family} changed no weight"
            if failed is not None:
                found.more["failed"] = failed
            yield found


def changes(model, layers: dict[str, Any], other: Any, args: QuantizeArguments) -> dict[str, AbstractContextManager]:
    """By family, the model's weights changed for a while; each gives the share of them that are others then."""
    if args.backend == "bitsandbytes":
        found = {name: bitsandbytes_layers(model, layers, name) for name in args.formats}
    else:
        found = {name: changed_weights(layers, FORMATS[name]) for name in args.formats}
    found |= {f"prune{share:g}": changed_weights(layers, partial(pruned, share=share)) for share in args.prune}
    if other is not None:
        found |= {f"{MERGE}{share:g}": merged_with(model, other, share, args.merge) for share in args.merge_weights}
    return found


def against_original(layers: dict[str, Any], original: Any, args: QuantizeArguments) -> dict[str, dict[str, Any]]:
    """Of every format, the share of weights whose code is the original model's (`same_code`, and `by_layer`), and how
    far the weights are from its own (`relative_update`: of the Frobenius norms). No forward pass is needed."""
    theirs = linear_layers(merged(original), args.skip)
    if {name: layer.weight.shape for name, layer in layers.items()} != {
        name: layer.weight.shape for name, layer in theirs.items()
    }:
        return {}
    pairs = {name: (weight_of(layer), weight_of(theirs[name])) for name, layer in layers.items()}
    sizes = {name: mine.numel() for name, (mine, _) in pairs.items()}
    moved = sum((mine.double() - other.double()).square().sum() for mine, other in pairs.values())
    whole = sum(other.double().square().sum() for _, other in pairs.values())
    update = float(torch.as_tensor(moved / whole).sqrt()) if sizes else 0.0
    found = {}
    for family in args.formats:
        shares = {name: round(FORMATS[family].same_code(*pair), 4) for name, pair in pairs.items()}
        same = sum(share * sizes[name] for name, share in shares.items()) / max(sum(sizes.values()), 1)
        found[family] = {"same_code": same, "by_layer": shares, "relative_update": update}
    return found


def _covered(model: torch.nn.Module, layers: dict[str, Any]) -> float:
    """The share of the model's parameters that the format holds."""
    return sum(layer.weight.numel() for layer in layers.values()) / sum(p.numel() for p in model.parameters())
