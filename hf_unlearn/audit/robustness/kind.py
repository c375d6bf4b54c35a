# SPDX-License-Identifier: Apache-2.0
"""What kinds of audits of robustness have in common: rows, the model as it is, and then the attack."""

import random
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import torch

from ...data.benchmarks import resolve_model
from ...places import check_folder
from ..base import AuditKind, Context
from ..checkpoints import check_fits, check_is_another, check_models
from ..generation import pad_token_id
from ..scoring import score_rows
from ..sets import rows_digest
from .arguments import RobustnessArguments
from .measured import Measured, RowScores
from .result import Robustness
from .rows import RobustnessPrepared, prepare_rows


# A preset is of an attack, and some methods have one of that name.
COMMON = frozenset(part.name for part in fields(RobustnessArguments)) - {"preset"}
# Of a kind's own fields, those that an audit of a recipe has too.
ASKED = frozenset({"max_new_tokens"})
# Sets, and what they are in [`Measured`].
PARTS = {"forget": "tested", "retain": "retain", "holdout": "holdout"}


class RobustnessKind(AuditKind):
    """An attack: what a model shows of the forget rows after it.

    It takes one model at a time, whichever that is. The unlearned model's result is then compared with those of the
    original and the retrained model, which are kept, so that another unlearned model does not attack them again.
    """

    arguments: ClassVar[type] = RobustnessArguments
    result: ClassVar[type] = Robustness
    when: ClassVar[tuple[str, ...]] = ("after",)
    original_is_measured: ClassVar[bool] = True
    not_taken: ClassVar[tuple[str, ...]] = ("seed", "max_length", "audit_batch_size", "seeds")
    own: ClassVar[tuple[str, ...]] = (*AuditKind.own, "original_model_name_or_path")

    def prepare(self, args: RobustnessArguments, qa) -> RobustnessPrepared:
        """Checks models and rows; a kind's own checks are in `check`."""
        check_folder("output_dir", args.output_dir)
        tokenizer = check_models(args, others=(args.original_model_name_or_path,))
        audited = resolve_model(args.model_name_or_path), args.model_revision
        others = [args.retrained_model_name_or_path, args.original_model_name_or_path]
        for path, revision in [audited, *((resolve_model(name), None) for name in others if name is not None)]:
            check_fits(path, "questions", args.trust_remote_code, revision)
        if args.retrained_model_name_or_path is not None:
            check_is_another(resolve_model(args.retrained_model_name_or_path), *audited)
        prepared = prepare_rows(args, qa, tokenizer)
        self.check(args, prepared)
        return prepared

    def check(self, args: Any, prepared: RobustnessPrepared) -> None:
        """Refuses what this attack cannot do with these rows; what it finds out goes to `prepared.more`."""

    @abstractmethod
    def attack(self, model: Any, args: Any, prepared: RobustnessPrepared, context: Context) -> Sequence[Measured]:
        """The model under every setting of the attack, settings in the same order for every model. It leaves the
        model and its mode as they were, also after an exception; draws come from generators of its own seeds."""

    def measure(self, model, args: RobustnessArguments, prepared: RobustnessPrepared, context: Context) -> Robustness:
        start = time.perf_counter()
        before = Measured("before", **self.scored_sets(model, args, prepared, context))
        with generators_kept():
            measured = list(self.attack(model, args, prepared, context))
        cost = {"seconds": round(time.perf_counter() - start, 2)}
        return self.result({}, self.settings(args, prepared), before, measured, cost)

    def settings(self, args: RobustnessArguments, prepared: RobustnessPrepared) -> dict[str, Any]:
        """What must be alike in results that are compared."""
        about = {name: value for name, value in vars(args).items() if name not in COMMON}
        about |= {f"{name}_rows": rows_digest(rows) for name, rows in prepared.rows.items()}
        about |= {name: getattr(args, name) for name in ("comparator", "scores", "bound", "resolution", "dtype")}
        groups = {"groups": prepared.groups["forget"], "holdout_groups": prepared.groups.get("holdout", [])}
        return about | groups | {"seeds": args.seeds}

    def scored(
        self,
        model: Any,
        args: RobustnessArguments,
        prepared: RobustnessPrepared,
        context: Context,
        which: str = "forget",
        rows: Sequence[int] | None = None,
        desc: str = "Scoring answers",
    ) -> RowScores:
        """Log-probabilities of the answers of a set, or of some of its rows, in the model as it is now."""
        rows = list(range(len(prepared.rows[which]))) if rows is None else list(rows)
        found = score_rows(
            model,
            [prepared.rows[which][i] for i in rows],
            pad_token_id=pad_token_id(prepared.tokenizer),
            batch_size=args.audit_batch_size,
            progress=context.progress,
            desc=desc,
        )
        return RowScores.of_tokens(rows, found)

    def scored_sets(self, model: Any, args, prepared, context: Context, **how: Any) -> dict[str, RowScores]:
        """All rows of all sets, by the part of [`Measured`] that they are; `how` as in `scored`."""
        return {
            part: self.scored(model, args, prepared, context, name, **how)
            for name, part in PARTS.items()
            if name in prepared.rows
        }

    def nothing(self, prepared: RobustnessPrepared) -> dict[str, RowScores]:
        """As `scored_sets`, of a model that gives no finite number."""
        return {
            part: RowScores.undefined(range(len(prepared.rows[name])))
            for name, part in PARTS.items()
            if name in prepared.rows
        }

    def taken_over(self, recipe) -> dict[str, Any]:
        # A recipe's steps and rates are of its training, not of the attack.
        own = {part.name for part in fields(self.arguments)} - COMMON - ASKED
        return {name: value for name, value in super().taken_over(recipe).items() if name not in own}

    def of_run(self, recipe, folder: str) -> dict[str, Any]:
        # What a run starts from is what there was to forget.
        return super().of_run(recipe, folder) | {"original_model_name_or_path": recipe["model_name_or_path"]}

    def notes(self, args: RobustnessArguments) -> list[str]:
        lacks = []
        if args.original_model_name_or_path is None:
            lacks.append("No original model was given: how much there was to forget is not known, and `remaining` is "
                         "undefined.")  # fmt: skip
        if args.comparator == "none" or (args.retrained_model_name_or_path is None and args.comparator != "holdout"):
            lacks.append("No retrained model was given. What an attack brings out of a model that never knew the rows "
                         "is seen in holdout rows only, if there are any.")  # fmt: skip
        return [*NOTES, *lacks]


@contextmanager
def generators_kept() -> Iterator[None]:
    """The generators of torch, numpy and random are afterwards as they were, also after an exception."""
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)


NOTES = (
    (
        "`remaining`: 1 as in the original model, 0 as in one that never knew the rows, both attacked alike; "
        "intervals are over groups of rows."
    ),
    (
        "`not recovered within budget` bounds what this attack finds with this budget. It does not show that "
        "knowledge was removed."
    ),
)
