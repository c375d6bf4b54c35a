# SPDX-License-Identifier: Apache-2.0
"""Does what was forgotten come back in the weights that are served: quantised, or pruned?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured
from .arguments import QuantizeArguments
from .formats import FORMATS, pruned


class QuantizeAudit(RobustnessKind):
    """Weights rounded to a format and back, in every linear layer but the head."""

    name, arguments = "quantize", QuantizeArguments

    def attack(self, model, args: QuantizeArguments, prepared, context) -> Iterator[Measured]:
        changes = {name: FORMATS[name] for name in args.formats}
        changes |= {f"prune{share:g}": partial(pruned, share=share) for share in args.prune}
        for family, change in changes.items():
            with changed_weights(model, change) as share:
                found = Measured(family, self.scored(model, args, prepared, context, desc=family), family)
                if "retain" in prepared.rows:
                    found.retain = self.scored(model, args, prepared, context, "retain", desc=family)
                if "holdout" in prepared.rows:
                    found.holdout = self.scored(model, args, prepared, context, "holdout", desc=family)
            found.more = {"changed": share}
            if share == 0:
                found.more["failed"] = f"{family} changed no weight"
            yield found


@contextmanager
def changed_weights(model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[float]:
    """The model with `change` of the weight of every linear layer but its head; gives the share of them that are
    other values now. The weights come back bit for bit, also after an exception."""
    layers = linear_layers(model)
    kept = [layer.weight.detach().clone() for layer in layers]
    try:
        moved = total = 0
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.weight.copy_(change(weight))
                moved += int((layer.weight != weight).sum())
                total += weight.numel()
        yield moved / total if total else 0.0
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.weight.copy_(weight)


def linear_layers(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Linear layers, each weight once, without the head and whatever shares its weight."""
    head = model.get_output_embeddings()
    tied = None if head is None else head.weight
    found = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not tied:
            found.setdefault(id(module.weight), module)
    return [*found.values()]
