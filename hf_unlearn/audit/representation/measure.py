# SPDX-License-Identifier: Apache-2.0
"""Where in a model what was forgotten can still be read: layer by layer, beside the original and the retrained one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...data.benchmarks import resolve_model
from ...models.activations import check_layer, layers_of
from ...models.loading import config_of
from ..generation import pad_token_id
from ..result import finite
from ..robustness.keys import key_tokens
from ..robustness.kind import RobustnessKind
from ..robustness.measured import DIGITS, Measured, RowScores
from ..robustness.splits import split_rows
from .arguments import PARTS, RepresentationArguments
from .directions import prompt_means, random_units, units, without
from .erasure import erasure
from .lens import TOP, answer, check_decodes, lens
from .result import Representation
from .similarity import similarity
from .states import Rows, answer_states, patched_answers, restored_answers
from .vectors import compared
from .weights import movement


# What models must share for the states of one to be read by another.
SHAPE = ("model_type", "num_hidden_layers", "hidden_size")


@dataclass
class Anchor:
    """What is kept of the original or the retrained model: scores of the forget rows, and each row's mean state
    `[n, layers, d]`."""

    scores: RowScores
    means: np.ndarray


@dataclass
class Anchors:
    """What every audited model is read beside; found once.

    Args:
        places (`list[list[int]]`): of each forget row, the tokens of its answer that are read.
        original, retrained ([`Anchor`], *optional*): where they are given.
        gold (`list[np.ndarray]`, *optional*): what the retrained model's states cost the original one, by row.
    """

    places: list[list[int]]
    original: Anchor | None = None
    retrained: Anchor | None = None
    gold: list[np.ndarray] | None = None


class RepresentationAudit(RobustnessKind):
    """Weights, logit lens, patched states in both directions, directions, similarity."""

    name, arguments, result = "representation", RepresentationArguments, Representation
    reads_others = True

    def check(self, args: RepresentationArguments, prepared) -> None:
        names = [args.model_name_or_path, args.original_model_name_or_path, args.retrained_model_name_or_path]
        configs = {
            name: config_of(resolve_model(name), args.trust_remote_code).get_text_config() for name in names if name
        }
        first = configs[args.model_name_or_path]
        for name, config in configs.items():
            differs = [key for key in SHAPE if getattr(config, key, None) != getattr(first, key, None)]
            if differs:
                theirs, mine = (getattr(one, differs[0], None) for one in (config, first))
                raise ValueError(
                    f"{name} has {differs[0]}={theirs!r}, the audited model {mine!r}: states of one cannot be read in "
                    "the other. Give models of one architecture."
                )
        for name, layers in (("layers", args.layers or ()), ("vectors", [layer for layer, _ in args.places()])):
            for layer in layers:
                check_layer(name, layer, first.num_hidden_layers)
        if not any(args.asked(part) for part in args.parts):
            lacks = sorted({name for part in args.parts for name in PARTS[part]} - args.given)
            raise ValueError(
                f"parts={' '.join(args.parts)} require the {' and the '.join(lacks)} model. Give "
                f"{' and '.join(f'`--{name}_model_name_or_path`' for name in lacks)}."
            )
        if args.asked("directions"):
            for seed in args.seeds:
                self._split(prepared, seed)

    def notes(self, args: RepresentationArguments) -> list[str]:
        lacking = [part for part in args.parts if not args.asked(part)]
        lacks = sorted({name for part in lacking for name in PARTS[part]} - args.given)
        more = [f"Not measured without the {' and the '.join(lacks)} model: {', '.join(lacking)}."] if lacking else []
        return [*super().notes(args), *NOTES, *more]

    def attack(self, model, args: RepresentationArguments, prepared, context) -> Iterator[Measured]:
        rows = self._rows(args, prepared, context)
        forget = rows["forget"]
        layers = args.layers_of(len(layers_of(model)))
        reads = {part for part in PARTS if args.asked(part)}
        anchors, original = self._anchors(args, prepared, context, forget, layers, reads)
        places = anchors.places
        if "weights" in reads:
            yield Measured("weights", RowScores([]), "weights", more=movement(model, original))
        if args.vectors:
            more = {"vectors": compared(model, original, args.places())}
            yield Measured("vectors", RowScores([]), "vectors", more=more)
        mine = answer_states(model, forget)
        if "lens" in reads:
            yield from self._lens(model, original, mine, args, rows, places, layers)
        if "erasure" in reads:
            costs = _costs(patched_answers(original, forget, mine, places, layers, "Patching"))
            found = erasure(costs, anchors.gold)
            tested = RowScores(_all(forget), scores={"intact": _rounded(found.intact)})
            more = {"layers": layers, "by_layer": _rounded(found.by_layer), "overshoot": found.overshoot}
            yield Measured("all layers", tested, "erasure", more=more)
        if "restoration" in reads:
            yield self._restoration(model, original, anchors, forget, layers)
        if "similarity" in reads:
            more = {}
            for name in ("original", "retrained"):
                anchor = getattr(anchors, name)
                if anchor is not None:
                    more[name] = similarity(_row_means(mine), anchor.means)
            yield Measured("similarity", RowScores([]), "similarity", more=more)
        if "directions" in reads:
            yield from self._directions(model, original, args, prepared, context, rows)

    def _rows(self, args, prepared, context) -> dict[str, Rows]:
        how = {"pad_token_id": pad_token_id(prepared.tokenizer), "batch_size": args.audit_batch_size}
        return {name: Rows(rows, progress=context.progress, **how) for name, rows in prepared.rows.items()}

    def _anchors(self, args, prepared, context, forget: Rows, layers, reads) -> tuple[Anchors, nn.Module | None]:
        """What is known of the other models, and the original one, loaded. The retrained one is gone by then."""
        kept, retrained, states = prepared.more.get("anchors"), None, []
        if kept is None and context.retrained is not None:
            model = context.retrained()
            states = answer_states(model, forget)
            retrained = Anchor(self.scored(model, args, prepared, context, desc="Retrained"), _row_means(states))
            del model
        original = None if context.original is None else context.original()
        if kept is not None:
            return kept, original
        kept = Anchors(_every(forget), retrained=retrained)
        if original is not None:
            scores = self.scored(original, args, prepared, context, desc="Original")
            kept.original = Anchor(scores, _row_means(answer_states(original, forget)))
            if retrained is not None and args.comparator != "holdout":
                kept.places = key_tokens(scores, retrained.scores)
            if "erasure" in reads:
                found = patched_answers(original, forget, states, kept.places, layers, "Patching (retrained)")
                kept.gold = _costs(found)
        prepared.more["anchors"] = kept
        return kept, original

    def _lens(self, model, original, states, args, rows, places, layers) -> Iterator[Measured]:
        """Answer tokens read from every layer but the last, which is what the model says."""
        last = len(layers_of(model)) - 1
        held = {}
        if self._beside_holdout(args, rows):
            held = {"rows": rows["holdout"], "states": answer_states(model, rows["holdout"])}
        check_decodes(model, rows["forget"])
        for family, reader in (("lens", model), ("lens_original", original)):
            for layer in layers if reader is not None else ():
                if layer == last:
                    continue
                found = Measured(f"layer {layer}", lens(reader, rows["forget"], states, layer, places), family)
                if held:
                    found.holdout = lens(reader, held["rows"], held["states"], layer, _every(held["rows"]))
                if reader is not model:
                    # What a model hides from its own head is asked of it alone.
                    for read in filter(None, (found.tested, found.holdout)):
                        del read.scores[f"top{TOP}"]
                yield found

    def _restoration(self, model, original, anchors: Anchors, forget: Rows, layers) -> Measured:
        found = np.stack(restored_answers(model, original, forget, anchors.places, layers))
        own, restored = found[:, 0], found[:, 1:]
        known = [
            finite(np.mean(np.asarray(logps)[at])) if at and logps else None
            for logps, at in zip(anchors.original.scores.logps, anchors.places, strict=True)
        ]
        more = {
            "layers": layers,
            "by_layer": _rounded(_mean(column) for column in restored.T),
            "own": _rounded(map(finite, own)),
            "restored": _rounded(map(finite, restored.mean(1))),
            "original": _rounded(known),
        }
        return Measured("all layers", RowScores([]), "restoration", more=more)

    def _directions(self, model, original, args, prepared, context, rows) -> Iterator[Measured]:
        """Forget rows that the directions were not fitted on, with these taken away in every layer."""
        kept = None
        if "retain" in rows:
            # As many as there are forget rows say where prompts of the kind are.
            kept = prompt_means(model, _some(rows["retain"], _all(rows["retain"])[: len(rows["forget"])]))
        for seed in args.seeds:
            shown, tested = self._split(prepared, seed)
            mine = prompt_means(model, _some(rows["forget"], shown))
            beside = {}
            if original is not None:
                beside["of the difference to the original"] = prompt_means(original, _some(rows["forget"], shown))
            if kept is not None:
                beside["of forget less retain prompts"] = kept
            for setting, theirs in beside.items():
                vectors = mine - theirs
                found = Measured(setting, RowScores([]), "directions", seed=seed)
                with without(model, random_units(vectors, seed)):
                    drawn = self.scored(model, args, prepared, context, rows=tested, desc="Random direction")
                with without(model, units(vectors)):
                    found.tested = self.scored(model, args, prepared, context, rows=tested, desc="Without direction")
                    if self._beside_holdout(args, rows):
                        found.holdout = self.scored(
                            model, args, prepared, context, "holdout", desc="Without direction"
                        )
                found.more = {"random_direction": _mean(drawn.values("probability"))}
                yield found

    @staticmethod
    def _beside_holdout(args, rows) -> bool:
        """Whether rows that no model saw stand for a model that never knew."""
        asked = args.comparator == "holdout" or (args.comparator == "auto" and "retrained" not in args.given)
        return asked and "holdout" in rows

    @staticmethod
    def _split(prepared, seed: int) -> tuple[list[int], list[int]]:
        groups = prepared.groups["forget"]
        return split_rows(groups, split="within" if len({*groups}) < len(groups) else "across", seed=seed)


NOTES = (
    (
        "Lens, erasure and restoration read the tokens of an answer that the original model knows and the retrained "
        "one does not; without a retrained model, all of its tokens."
    ),
    (
        "An erasure of 1 does not show that knowledge is gone: a model that was damaged has it too, and then its "
        "`overshoot` is above 1."
    ),
    "Weights, restoration and similarity describe; no verdict follows from them.",
)


def _costs(found: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [row[0] - row[1:] for row in found]


def _every(rows: Rows) -> list[list[int]]:
    """All tokens of each answer."""
    return [list(range(len(answer(row)))) for row in rows.rows]


def _row_means(states: Sequence[Tensor]) -> np.ndarray:
    return np.stack([row.double().mean(1).numpy() for row in states])


def _all(rows: Rows) -> list[int]:
    return list(range(len(rows)))


def _some(rows: Rows, chosen: Sequence[int]) -> Rows:
    return Rows([rows.rows[i] for i in chosen], rows.pad_token_id, rows.batch_size, rows.progress)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _rounded(values: Any) -> list[float | None]:
    return [None if value is None else round(float(value), DIGITS) for value in values]
