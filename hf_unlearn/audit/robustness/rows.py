# SPDX-License-Identifier: Apache-2.0
"""The rows of an audit of robustness: forget rows by group, rows to keep, and rows that no model saw."""

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...data.qa import QAFormat
from ...data.sets import load_sets
from ...data.sources import load_rows
from ..base import Prepared
from ..sets import AuditSet, read_sets, rows_digest
from .arguments import RobustnessArguments
from .recovery import FEWEST_GROUPS


logger = logging.getLogger(__name__)
# What the rows of a benchmark are about: a column, or so many rows one after the other.
GROUPS: dict[str, str | int] = {"world": "person", "tofu": 20, "tofu_mini": 20}


@dataclass
class RobustnessPrepared(Prepared):
    """Rows, encoded (`rows`) and as they were read (`sets`): `forget`, and where there are any `retain` and
    `holdout`.

    Args:
        qa ([`QAFormat`]): the form of questions and answers.
        sets (`dict[str, AuditSet]`): `question` and `answer`, or `text`, and what else a row brings.
        groups (`dict[str, list]`): the person or document of each row.
        more (`dict`): what a kind of audit found out before models are loaded.
    """

    qa: QAFormat = field(default_factory=QAFormat)
    sets: dict[str, AuditSet] = field(default_factory=dict)
    groups: dict[str, list[Hashable]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def check_questions(self, why: str, names: Iterable[str] | None = None) -> None:
        """Refuses sets (all of them, or those that are named and there) that are texts, where questions are asked.

        Raises:
            `ValueError`
        """
        for name in self.sets if names is None else names:
            if name in self.sets and not self.sets[name].is_qa:
                raise ValueError(f"The {name} rows are texts, and {why}. Give `question` and `answer`.")

    @property
    def beside(self) -> dict[str, Any]:
        # Attacks read other columns than question and answer, and put questions into templates of their own.
        columns = {f"columns of {name}": rows_digest(one.rows) for name, one in self.sets.items()}
        groups = {f"groups of {name}": rows_digest(found) for name, found in self.groups.items()}
        return {**columns, **groups, "chat template": getattr(self.tokenizer, "chat_template", None)}


def prepare_rows(args: RobustnessArguments, qa: QAFormat, tokenizer: Any) -> RobustnessPrepared:
    """Reads, draws and encodes the rows that the arguments name.

    Raises:
        `ValueError`: for rows that an audit cannot read, answers without a token, and a group column that is not
            there.
    """
    loaded = load_sets(args, qa, tokenizer, args.max_length)
    found = loaded.audited
    if args.holdout_dataset is not None:
        config, split = args.holdout_dataset_config, args.holdout_dataset_split
        found = {**found, "holdout": load_rows(args.holdout_dataset, config, split, tokenizer, args.max_length)}
    elif args.comparator == "holdout" and "holdout" not in found:
        raise ValueError("comparator='holdout' requires `--holdout_dataset`: rows that no model was trained on.")
    asked = {name: found[name] for name in ("forget", "retain", "holdout") if name in found}
    if "forget" not in asked:
        raise ValueError("There are no forget rows that can be asked about. Give `--forget_dataset`.")
    sets = {one.name: one for one in read_sets(asked, {name: name for name in asked}, args.max_items, args.seeds[0])}
    qa = qa.settled(tokenizer)
    rows = {name: encoded_rows(one, tokenizer, qa, args.max_length) for name, one in sets.items()}
    by = args.group_by or GROUPS.get(args.benchmark)
    groups = {name: groups_of(one, by, loaded.places.get(name)) for name, one in sets.items()}
    if (found := len({*groups["forget"]})) < FEWEST_GROUPS:
        logger.warning(
            "The forget rows are of %d group%s, and an interval requires %d: what is measured will decide nothing. "
            "Give rows about more people or documents (of tofu_mini: `forget_targets`), or a `group_by` of more "
            "values. `--group_by question` takes every row for itself; where one person's rows are alike, its "
            "intervals are too narrow.", found, "s" * (found != 1), FEWEST_GROUPS,
        )  # fmt: skip
    return RobustnessPrepared(tokenizer, rows, qa, sets, groups)


def groups_of(rows: AuditSet, by: str | int | None, places: Sequence[int] | None = None) -> list[Hashable]:
    """The group of each row: the value of a column, its place among so many rows, or the row itself. `places` are
    those of the set's rows before some were left out of it."""
    if isinstance(by, int):
        return [(index if places is None else places[index]) // by for index in rows.index]
    if by is None:
        return list(rows.index)
    if missing := [i for i, row in zip(rows.index, rows.rows, strict=True) if row.get(by) is None]:
        if rows.role != "forget":
            return list(rows.index)
        raise ValueError(
            f"group_by={by!r}: row {missing[0]} of the forget set has no such value; its columns are "
            f"{', '.join(sorted(rows.rows[0]))}."
        )
    return [str(row[by]) for row in rows.rows]


def encoded_rows(rows: AuditSet, tokenizer: Any, qa: QAFormat, max_length: int) -> list[dict[str, Sequence[int]]]:
    """The rows with their answers labelled."""
    column = "answer" if rows.is_qa else "text"
    if empty := [i for i, row in zip(rows.index, rows.rows, strict=True) if not row[column].strip()]:
        raise ValueError(
            f"Row {empty[0]} of the {rows.name} set has an empty `{column}`. Leave it out: nothing of it can "
            "come back."
        )
    plain = AuditSet(rows.name, rows.role, [{k: row[k] for k in _columns(rows)} for row in rows.rows], rows.index)
    return [row for (kind, _, _), row in plain.scored_rows(tokenizer, qa, max_length).items() if kind == "answer"]


def _columns(rows: AuditSet) -> tuple[str, ...]:
    return ("question", "answer") if rows.is_qa else ("text",)
