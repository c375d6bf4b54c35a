# SPDX-License-Identifier: Apache-2.0
"""Does one trained prompt bring back forgotten rows that it was not trained on?"""

from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

from ...modeling import frozen
from ..as_saved import as_saved
from ..generation import pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores
from ..robustness.reach import reach
from ..robustness.rows import RobustnessPrepared
from ..robustness.splits import digests_of_shown, splits_by_seed
from ..robustness.weights import smallest_vocabulary
from ..scoring import score_rows
from .arguments import SoftPromptArguments
from .vectors import in_place_of, place_in, reserved_id, trained, with_marks


SETS = ("forget", "holdout")


class SoftPromptAudit(RobustnessKind):
    """One universal prompt, trained on some forget rows and tested on the others. A prompt of its own for every row
    would only show that vectors can hold a sentence."""

    name, arguments = "soft_prompt", SoftPromptArguments

    def check(self, args: SoftPromptArguments, prepared: RobustnessPrepared) -> None:
        sets = [name for name in SETS if name in prepared.sets]
        prepared.check_questions("the prompt stands in a question", sets)
        prepared.more["split"] = splits_by_seed(args, prepared)
        # What fills a batch is no mark, though it stands in no row.
        filled = {"input_ids": [pad_token_id(prepared.tokenizer)]}
        rows = [row for name in sets for row in prepared.rows[name]]
        mark = reserved_id([*rows, filled], smallest_vocabulary(args))
        prepared.more["mark"] = mark
        prepared.more["marked"] = {
            name: [
                with_marks(
                    row, place_in(told["question"], args.place, prepared.qa, prepared.tokenizer), mark, args.vectors
                )
                for row, told in zip(prepared.rows[name], prepared.sets[name].rows, strict=True)
            ]
            for name in sets
        }

    def settings(self, args: SoftPromptArguments, prepared: RobustnessPrepared) -> dict[str, Any]:
        shown = digests_of_shown(prepared.rows["forget"], prepared.more["split"])
        return super().settings(args, prepared) | {"attack_rows": shown, "mark": prepared.more["mark"]}

    def attack(self, model, args: SoftPromptArguments, prepared: RobustnessPrepared, context) -> Iterator[Measured]:
        marked, pad = prepared.more["marked"], pad_token_id(prepared.tokenizer)
        before = self.scored(model, args, prepared, context, desc="Scoring without a prompt")
        setting = f"{args.vectors} vectors, learning_rate {args.learning_rate:g}"
        for seed, (shown, tested) in prepared.more["split"].items():

            def scored(vectors, rows, seed=seed):
                with in_place_of(model, prepared.more["mark"], vectors):
                    return score_rows(
                        model, rows, pad_token_id=pad, batch_size=args.audit_batch_size, progress=context.progress,
                        desc=f"Scoring, seed {seed}",
                    )  # fmt: skip

            with (
                as_saved(model),
                frozen(model),
                tqdm(total=args.steps, desc=f"Soft prompt, seed {seed}", disable=not context.progress) as bar,
            ):
                vectors = trained(
                    model, [marked["forget"][i] for i in shown], mark=prepared.more["mark"], n=args.vectors,
                    learning_rate=args.learning_rate, steps=args.steps, batch_size=args.batch_size, seed=seed,
                    pad_token_id=pad, on_step=bar.update,
                )  # fmt: skip
            found = Measured(
                setting,
                RowScores.of_tokens(tested, scored(vectors, [marked["forget"][i] for i in tested])),
                seed=seed,
                step=args.steps,
            )
            if "holdout" in marked:
                places = range(len(marked["holdout"]))
                found.holdout = RowScores.of_tokens(places, scored(vectors, marked["holdout"]))
            own = RowScores.of_tokens(shown, scored(vectors, [marked["forget"][i] for i in shown]))
            found.more = reach(own, found.tested, before) | {"norm_ratio": _norm_ratio(vectors, model)}
            yield found

    def notes(self, args: SoftPromptArguments) -> list[str]:
        return [
            *super().notes(args),
            (
                "The prompt is tested on rows that it was not trained on. What it brings out of its own rows "
                "(`shown`) says nothing: vectors can hold sentences that no model ever saw."
            ),
        ]


def _norm_ratio(vectors, model) -> float | None:
    """The largest vector over the largest embedding."""
    table = model.get_input_embeddings().weight.detach()
    largest = float(table.float().norm(dim=-1).max())
    return round(float(vectors.norm(dim=-1).max()) / largest, 3) if largest else None
