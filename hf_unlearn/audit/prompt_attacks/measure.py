# SPDX-License-Identifier: Apache-2.0
"""Does what was forgotten come back if it is asked in other words?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...data.benchmarks import resolve_model
from ...models.loading import config_of
from ..generation import generate_answers, pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores
from ..robustness.rows import RobustnessPrepared
from ..scoring import score_rows
from .answers import KINDS, kind_of
from .arguments import PromptsArguments
from .asking import Opening, answered_from, opening, scored_row
from .cases import Case, Prompt
from .choices import chosen
from .transforms import ANSWER, TRANSFORMS, VERSION


# Ways to ask that leave the original model less than this share of what it knows of retain rows are left out.
TOO_STRANGE = 0.5
PARTS = {"forget": "tested", "holdout": "holdout", "retain": "retain"}


@dataclass
class Asked:
    """A transform of a set: the rows that it applies to, their prompts, and these with their answers, encoded."""

    rows: list[int] = field(default_factory=list)
    prompts: list[list[Prompt]] = field(default_factory=list)
    encoded: list[list[dict[str, list[int]]]] = field(default_factory=list)
    too_long: int = 0


class PromptsAudit(RobustnessKind):
    """Every transform is a family of its own; `max` is the best of them row by row."""

    name, arguments = "prompts", PromptsArguments

    def check(self, args: PromptsArguments, prepared: RobustnessPrepared) -> None:
        prepared.check_questions("prompts are questions")
        _check_context(args, prepared)
        limit = _longest(args)
        asked = {
            name: {which: ask(name, which, args, prepared, limit) for which in PARTS if which in prepared.rows}
            for name in args.transforms or TRANSFORMS
        }
        idle = [name for name, sets in asked.items() if not sets["forget"].rows]
        for name in idle if args.named else ():
            if long := asked[name]["forget"].too_long:
                why = f"all {long} prompts are longer than max_length={limit}"
            else:
                why = f"it requires {TRANSFORMS[name].requires or 'shorter prompts'}"
            raise ValueError(f"transforms: {name!r} applies to no forget row; {why}.")
        prepared.more["asked"] = {name: sets for name, sets in asked.items() if name not in idle}
        if not prepared.more["asked"]:
            raise ValueError(f"No way to ask applies to any forget row within max_length={limit}. Raise `max_length`.")

    def settings(self, args: PromptsArguments, prepared: RobustnessPrepared) -> dict[str, Any]:
        about = super().settings(args, prepared) | {"templates": VERSION, "damaging": ["retain", TOO_STRANGE]}
        return about | {"transforms": list(prepared.more["asked"])}

    def attack(self, model, args: PromptsArguments, prepared: RobustnessPrepared, context) -> Iterator[Measured]:
        if args.generate:
            # The question as it is: what answers to other prompts are compared with.
            sets = {
                which: ask("", which, args, prepared, args.max_length) for which in PARTS if which in prepared.rows
            }
            yield self._measured(model, "plain", sets, args, prepared, context)
        for name, sets in prepared.more["asked"].items():
            yield self._measured(model, name, sets, args, prepared, context)

    def _measured(self, model, name: str, sets: dict[str, Asked], args, prepared, context) -> Measured:
        score = TRANSFORMS[name].score if name in TRANSFORMS else ANSWER
        found = Measured(name, RowScores([]), name, more={"optional": True})
        if score == ANSWER:
            found.more["joins"] = True
        for which, part in PARTS.items():
            asked = sets.get(which)
            if asked is None or not asked.rows:
                continue
            if name == "plain":
                scores = RowScores(list(asked.rows))
            else:
                scores = _scored(model, asked, score, args, prepared, context, name)
            if args.generate and score == ANSWER and which != "retain":
                scores.scores["answered"], counts = _answered(model, asked, which, args, prepared, context, name)
                found.more[f"{part}_answers"] = counts
            setattr(found, part, scores)
        if long := sum(asked.too_long for asked in sets.values()):
            found.more["too_long"] = long
        return found


def ask(name: str, which: str, args: PromptsArguments, prepared: RobustnessPrepared, limit: int) -> Asked:
    """A set's rows under a transform; under none with an empty name."""
    rows, groups = prepared.sets[which].rows, prepared.groups[which]
    places = range(len(rows))
    if which == "retain":
        places = np.linspace(0, len(rows) - 1, min(args.retain_items, len(rows))).round().astype(int).tolist()
    kept = [] if "retain" not in prepared.sets else prepared.sets["retain"].rows
    number = list(TRANSFORMS).index(name) if name else 0
    found = Asked()
    for place in places:
        if name:
            case = Case(
                rows[place],
                groups[place] if isinstance(groups[place], str) else None,
                [row for i, row in enumerate(rows) if groups[i] == groups[place] and i != place],
                [row for i, row in enumerate(rows) if groups[i] != groups[place]],
                [row for i, row in enumerate(kept) if which != "retain" or i != place],
                np.random.default_rng([args.seeds[0], list(PARTS).index(which), place, number]),
                args,
            )
            prompts = TRANSFORMS[name].make(case)
        else:
            prompts = [Prompt(rows[place]["question"])]
        if not prompts:
            continue
        row, opened = prepared.rows[which][place], _opening(prepared, which, place)
        encoded = [scored_row(prompt, row, prepared.qa, prepared.tokenizer, limit, opened) for prompt in prompts]
        if None in encoded:
            found.too_long += 1
            continue
        found.rows.append(place)
        found.prompts.append(prompts)
        found.encoded.append(encoded)
    return found


def _opening(prepared: RobustnessPrepared, which: str, place: int) -> Opening:
    told = prepared.sets[which].rows[place]
    return opening(prepared.rows[which][place], told["question"], told["answer"], prepared.qa, prepared.tokenizer)


def _scored(model, asked: Asked, score: str, args, prepared, context, name: str) -> RowScores:
    """What a model thinks of the answers; of several prompts of a row, the one it answers best."""
    flat = [row for rows in asked.encoded for row in rows]
    found = score_rows(
        model,
        flat,
        pad_token_id=pad_token_id(prepared.tokenizer),
        batch_size=args.audit_batch_size,
        progress=context.progress,
        desc=name,
    )
    parts, start = [], 0
    for rows in asked.encoded:
        parts.append(found[start : start + len(rows)])
        start += len(rows)
    if score == "choice":
        letters = [[prompt.answer for prompt in prompts] for prompts in asked.prompts]
        return RowScores(
            list(asked.rows), scores={"choice": chosen([[s.mean_logp for s in part] for part in parts], letters)}
        )
    best = [max(part, key=lambda s: -np.inf if s.mean_logp is None else s.mean_logp) for part in parts]
    scores = RowScores.of_tokens(asked.rows, best)
    if score == ANSWER:
        return scores
    return RowScores(list(asked.rows), scores={score: scores.values("probability")})


def _answered(model, asked: Asked, which: str, args, prepared, context, name: str):
    """Whether a row is answered rightly under any of its prompts, and how many answers are of which kind."""
    rows, qa, tokenizer = prepared.rows[which], prepared.qa, prepared.tokenizer
    starts = [
        answered_from(prompt, rows[place], qa, tokenizer, _opening(prepared, which, place))
        for place, prompts in zip(asked.rows, asked.prompts, strict=True)
        for prompt in prompts
    ]
    texts = iter(
        generate_answers(
            model, tokenizer, starts, max_new_tokens=args.max_new_tokens, batch_size=args.audit_batch_size,
            progress=context.progress, desc=f"{name}, answers",
        )
    )  # fmt: skip
    counts, right = dict.fromkeys(KINDS, 0), []
    for place, prompts in zip(asked.rows, asked.prompts, strict=True):
        kinds = [kind_of(next(texts), prepared.sets[which].rows[place]) for _ in prompts]
        right.append(float("right" in kinds))
        for kind in kinds:
            counts[kind] += 1
    return right, counts


def _longest(args: PromptsArguments) -> int:
    """Tokens that a prompt with its answer may have."""
    config = config_of(resolve_model(args.model_name_or_path), args.trust_remote_code, args.model_revision)
    room = getattr(config.get_text_config(), "max_position_embeddings", None) or args.max_length
    return min(args.max_length, room)


def _check_context(args: PromptsArguments, prepared: RobustnessPrepared) -> None:
    """Refuses related text in which the answer stands."""
    if args.context_column is None:
        return
    rows = prepared.sets["forget"]
    leaks: Sequence[int] = [
        i
        for i, row in zip(rows.index, rows.rows, strict=True)
        if Case(row).gives_away(row.get(args.context_column) or "")
    ]
    if leaks:
        raise ValueError(
            f"context_column={args.context_column!r}: the answers of rows {', '.join(map(str, leaks[:10]))} of the "
            "forget set stand in their context, which would tell them. Take them out of it."
        )
