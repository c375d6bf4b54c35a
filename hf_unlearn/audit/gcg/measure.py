# SPDX-License-Identifier: Apache-2.0
"""Does one searched prefix bring back forgotten rows that it was not searched on?"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from ...modeling import frozen
from ..as_saved import as_saved
from ..generation import pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores, mean_of
from ..robustness.reach import reach
from ..robustness.rows import RobustnessPrepared
from ..robustness.splits import check_leaks, digests_of_shown, splits_by_seed
from ..robustness.weights import smallest_vocabulary
from ..scan.budget import Budget
from ..scan.objective import Recall
from ..scan.search import Search, SearchSettings, search_bar
from ..scan.slots import random_prefix
from ..scoring import score_rows
from .arguments import GcgArguments
from .prefixes import Unspoken, behind, silent_tokens, told_by
from .result import Prefixed, came_back


SETS = ("forget", "holdout")
FEWEST_ROWS = 12


class GcgAudit(RobustnessKind):
    """One universal prefix of text, searched by gradients on some forget rows and tested on the others; each model
    gets a search of its own with the same budget."""

    name, arguments = "gcg", GcgArguments
    result: ClassVar[type] = Prefixed

    def check(self, args: GcgArguments, prepared: RobustnessPrepared) -> None:
        sets = [name for name in SETS if name in prepared.sets]
        prepared.check_questions("the prefix stands in a question", sets)
        rows, forget = [row for name in sets for row in prepared.sets[name].rows], prepared.sets["forget"]
        allowed = silent_tokens(prepared.tokenizer, smallest_vocabulary(args), rows)
        told, splits = told_by(rows), splits_by_seed(args, prepared)
        prepared.more |= {"split": splits, "allowed": allowed, "searched": {}}
        for seed, (shown, tested) in splits.items():
            texts = [f"{forget.rows[i]['question']} {forget.rows[i]['answer']}" for i in shown]
            check_leaks(texts, [forget.rows[i]["answer"] for i in tested], [forget.index[i] for i in tested])
            rng = np.random.default_rng(seed)
            on = sorted(rng.permutation(shown)[: args.search_rows].tolist())
            asking = Unspoken([forget.rows[i] for i in on], prepared.tokenizer, prepared.qa, args.location, told)
            slots = [asking.slot(i) for i in range(len(on))]
            prepared.more["searched"][seed] = on, asking, slots
            least = len(slots) * (1 + max(len(slot.before) + len(slot.after) for slot in slots))
            if args.budget_tokens < least:
                raise ValueError(
                    f"budget_tokens={args.budget_tokens}; one prefix takes {least} on {len(slots)} rows. Give "
                    "more, or fewer `search_rows`."
                )
            # Whether texts of this length are found at all.
            random_prefix(asking, allowed, args.max_tokens, rng)

    def settings(self, args: GcgArguments, prepared: RobustnessPrepared) -> dict[str, Any]:
        shown = digests_of_shown(prepared.rows["forget"], prepared.more["split"])
        return super().settings(args, prepared) | {"attack_rows": shown, "fewest_rows": FEWEST_ROWS}

    def measure(self, model, args: GcgArguments, prepared: RobustnessPrepared, context) -> Prefixed:
        found = super().measure(model, args, prepared, context)
        found.cost["tokens"] = sum(one.more["search"]["tokens"] for one in found.measured)
        return found

    def attack(self, model, args: GcgArguments, prepared: RobustnessPrepared, context) -> Iterator[Measured]:
        before = self.scored(model, args, prepared, context, desc="Scoring without a prefix")
        for seed, (_, tested) in prepared.more["split"].items():
            on, asking, slots = prepared.more["searched"][seed]
            how = SearchSettings(args.max_tokens, args.width, args.top_k, share=1.0, seed=seed)
            budget = Budget(tokens=args.budget_tokens)
            with (
                as_saved(model),
                frozen(model),
                search_bar(budget, context.progress, f"Searching, seed {seed}") as watch,
            ):
                recall = Recall(model, slots, pad_token_id(prepared.tokenizer), how.share)
                search = Search(recall, asking, prepared.more["allowed"], how, budget, watch)
                search.run(stop=False)
            best = search.ranking[0]
            prefix = asking.words(best.ids)

            def scored(name, places, words, seed=seed) -> list[RowScores]:
                return self._behind(model, args, prepared, context, name, places, words, f"Scoring, seed {seed}")

            (own,) = scored("forget", on, [prefix])
            rng = np.random.default_rng([seed, 1])
            drawn = [
                asking.words(random_prefix(asking, prepared.more["allowed"], len(best.ids), rng))
                for _ in range(args.random_prefixes)
            ]
            found, *others = scored("forget", tested, [prefix, *drawn])
            one = Measured(f"{args.budget_tokens:,} tokens", found, seed=seed)
            if "holdout" in prepared.sets:
                (one.holdout,) = scored("holdout", range(len(prepared.sets["holdout"].rows)), [prefix])
            one.more = {
                **reach(own, found, before),
                "prefix": prefix,
                "search": {
                    "tokens": budget.spent_tokens,
                    "evaluations": budget.spent_evaluations,
                    "restarts": search.restarts,
                    "loss": -best.score,
                    "restored": best.restored,
                    "length": len(best.ids),
                },
                "random": {
                    "restored": [sum(came_back(other, before)) for other in others],
                    "probability": mean_of([mean_of(other.values("probability")) for other in others]),
                },
            }
            yield one

    def _behind(self, model, args, prepared, context, name, places, prefixes, desc) -> list[RowScores]:
        """Rows of a set behind each prefix."""
        places, room = list(places), args.max_length + args.max_tokens
        rows = [
            row
            for prefix in prefixes
            for row in behind(prepared.sets[name], places, prefix, args.location, prepared, room)
        ]
        found = score_rows(
            model, rows, pad_token_id=pad_token_id(prepared.tokenizer), batch_size=args.audit_batch_size,
            progress=context.progress, desc=desc,
        )  # fmt: skip
        n = len(places)
        return [RowScores.of_tokens(places, found[at : at + n]) for at in range(0, len(found), n)]

    def notes(self, args: GcgArguments) -> list[str]:
        return [
            *super().notes(args),
            (
                "A searched prefix makes answers likelier in a model that never knew them, too: it is held against "
                "the prefix that the same search finds there, and against random ones of its length."
            ),
            (
                "No prefix holds a word, or a token of a word, in which an answer tells something. `restored` takes "
                "rows as independent."
            ),
        ]
