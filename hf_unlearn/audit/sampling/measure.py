# SPDX-License-Identifier: Apache-2.0
"""Does what was forgotten come out if a model is asked again and again?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.formats import IGNORE_INDEX, encode_prompt
from ..generation import generate_answers, pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores
from ..robustness.rows import RobustnessPrepared
from ..scoring import score_rows, token_scores
from ..sets import content_length, special_ids
from .arguments import SamplingArguments
from .leak import MEASURES, leak_exact, leak_sampled


SETS = ("forget", "holdout")


class SamplingAudit(RobustnessKind):
    """`leak_exact@k` and `leak@k`: the chance, or the expected score, of the best of `k` answers."""

    name, arguments = "sampling", SamplingArguments

    def check(self, args: SamplingArguments, prepared: RobustnessPrepared) -> None:
        prepared.check_questions("sampling asks questions", SETS)
        for name in (name for name in SETS if name in prepared.sets):
            rows = prepared.sets[name]
            if args.measure == "contains":
                _check_column(args.key_column, rows)
            for i, row in zip(rows.index, prepared.rows[name], strict=True):
                if args.mode != "sampled" and len(row["input_ids"]) >= args.max_length:
                    raise ValueError(
                        f"Row {i} of the {name} set fills max_length={args.max_length}: the probability of its whole "
                        "answer is not known. Raise `max_length`."
                    )

    def attack(self, model, args: SamplingArguments, prepared: RobustnessPrepared, context) -> Iterator[Measured]:
        found = Measured(f"temperature {args.temperature:g}", RowScores([]))
        for name, part in (("forget", "tested"), ("holdout", "holdout")):
            if name not in prepared.rows:
                continue
            scores: dict[str, list[float | None]] = {}
            if args.mode != "sampled":
                logps = _answer_logps(model, args, prepared, name, context.progress)
                scores |= {
                    f"leak_exact@{k}": [None if p is None else leak_exact(p, k) for p in logps] for k in args.ks
                }
                found.more[f"{part}_log10_draws"] = _draws(logps)
            if args.mode != "exact":
                drawn = _drawn_scores(model, args, prepared, name, context.progress)
                scores |= {
                    f"leak@{k}": [None if None in row else leak_sampled(row, k) for row in drawn] for k in args.ks
                }
            setattr(found, part, RowScores(list(range(len(prepared.rows[name]))), scores=scores))
        yield found

    def notes(self, args: SamplingArguments) -> list[str]:
        told = []
        if args.mode != "sampled":
            told.append(
                "`leak_exact@k` counts the expected answer word for word: other wordings of it add to what leaks."
            )
        if args.mode != "exact" and max(args.ks) > args.samples / 2:
            told.append(
                f"samples={args.samples}: leak@{max(args.ks)} of a single row is noisy; means over rows are unbiased."
            )
        return [*super().notes(args), *told]


def whole_answer(row: Mapping[str, Sequence[int]], tokenizer: Any) -> dict[str, list[int]]:
    """A row labelled up to the token that ends its answer: what a template puts behind it is nothing that is drawn."""
    end = content_length(row, tokenizer)
    places = [place for place, label in enumerate(row["labels"]) if place and label != IGNORE_INDEX]
    special = special_ids(tokenizer)
    while end < len(places):
        end += 1
        if row["labels"][places[end - 1]] in special:
            break
    kept = {*places[:end]}
    return {**row, "labels": [label if i in kept else IGNORE_INDEX for i, label in enumerate(row["labels"])]}


def _answer_logps(model, args, prepared, name: str, progress: bool) -> list[float | None]:
    """Log-probability of each row's answer and its end, drawn at the temperature that is asked for."""
    found = score_rows(
        model,
        [whole_answer(row, prepared.tokenizer) for row in prepared.rows[name]],
        pad_token_id=pad_token_id(prepared.tokenizer),
        batch_size=args.audit_batch_size,
        progress=progress,
        desc="Scoring answers",
        scores_of=lambda logits, labels: token_scores(logits / args.temperature, labels),
    )
    return [None if score.mean_logp is None else float(score.logps.sum(dtype=np.float64)) for score in found]


def _drawn_scores(model, args, prepared, name: str, progress: bool) -> list[list[float | None]]:
    """The score of each draw of each row `[rows][samples]`."""
    rows, n = prepared.sets[name].rows, args.samples
    prompts = [
        encode_prompt(prepared.qa.example(row["question"], "", prepared.tokenizer), prepared.tokenizer) for row in rows
    ]
    texts = generate_answers(
        model,
        prepared.tokenizer,
        [prompt for prompt in prompts for _ in range(n)],
        max_new_tokens=args.max_new_tokens,
        batch_size=args.generation_batch_size,
        progress=progress,
        desc="Drawing answers",
        seeds=[draw_seed(args.seeds[0], i, j) for i in range(len(rows)) for j in range(n)],
        temperature=args.temperature,
        top_p=args.top_p,
    )
    score = MEASURES[args.measure]
    return [
        score(texts[i * n : (i + 1) * n], row["answer"], row.get(args.key_column) or "") for i, row in enumerate(rows)
    ]


def draw_seed(seed: int, row: int, draw: int) -> int:
    """A seed for one draw of one row, in every model the same."""
    return int(np.random.SeedSequence([seed, row, draw]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _draws(logps: Sequence[float | None]) -> dict[str, float]:
    """Quantiles over rows of the expected number of draws until the answer comes, as powers of 10."""
    known = [-logp / np.log(10) for logp in logps if logp is not None]
    return {f"q{q:02d}": round(float(np.quantile(known, q / 100)), 2) for q in (10, 50, 90)} if known else {}


def _check_column(column: str, rows) -> None:
    for i, row in zip(rows.index, rows.rows, strict=True):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise ValueError(
                f"key_column={column!r}: row {i} of the {rows.name} set has no text there; its columns are "
                f"{', '.join(sorted(row))}."
            )
