# SPDX-License-Identifier: Apache-2.0
"""Which forget rows an attacker is shown, and on which others the attack is tested."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ...checks import check_choice
from ..sets import AuditSet, rows_digest
from .words import stands_in, words


SPLITS = ("within", "across")


def split_rows(
    groups: Sequence[Hashable],
    shown: float = 0.5,
    split: str = "within",
    seed: int = 0,
    facts: Sequence[Hashable] | None = None,
) -> tuple[list[int], list[int]]:
    """Rows for the attacker, and rows to test on.

    Args:
        groups (`Sequence` `[n]`): the person or document of each row.
        shown (`float`): share of the rows for the attacker.
        split (`str`):
            `"within"`: of every group some rows are shown, and of groups of one fact some groups; `"across"`: whole
            groups are.
        seed (`int`): of the choice.
        facts (`Sequence` `[n]`, *optional*): rows of one fact, such as its paraphrases, go to one side.

    Returns:
        `tuple[list[int], list[int]]`: places in the set, in order; they share no row.

    Raises:
        `ValueError`: if one side would be empty.
    """
    check_choice("split", split, SPLITS)
    if not 0 < shown < 1:
        raise ValueError(f"The attacker's share is {shown}; give a number between 0 and 1.")
    facts = list(range(len(groups))) if facts is None else [(g, f) for g, f in zip(groups, facts, strict=True)]
    rng = np.random.default_rng(seed)
    units = defaultdict(list)
    for i, (group, fact) in enumerate(zip(groups, facts, strict=True)):
        units[group if split == "across" else fact].append(i)
    whole, pools = [], defaultdict(list)
    for unit, rows in units.items():
        (whole if split == "across" else pools[groups[rows[0]]]).append(unit)
    whole += [pool[0] for pool in pools.values() if len(pool) == 1]
    mine: list[int] = []
    for pool in ([*whole], *(pool for pool in pools.values() if len(pool) > 1)):
        order = rng.permutation(len(pool))[: round(shown * len(pool))]
        mine += [row for i in sorted(order.tolist()) for row in units[pool[i]]]
    others = sorted({*range(len(groups))} - {*mine})
    if not mine or not others:
        raise ValueError(
            f"{len(groups)} rows in {len({*groups})} groups cannot be split {split} groups with a share of {shown:g} "
            "for the attacker: one side would be empty."
        )
    return sorted(mine), others


def check_leaks(shown: Sequence[str], tested: Sequence[str], rows: Sequence[int]) -> None:
    """Refuses tested answers that stand, word for word, in what the attacker is shown.

    Args:
        shown (`Sequence[str]`): texts for the attacker.
        tested (`Sequence[str]` `[n]`): answers to test on.
        rows (`Sequence[int]` `[n]`): their places in the set.

    Raises:
        `ValueError`: that names the rows.
    """
    leaked = [
        row for row, answer in zip(rows, tested, strict=True) if any(stands_in(answer, text) for text in {*shown})
    ]
    if leaked:
        raise ValueError(
            f"The answers of the tested rows {', '.join(map(str, leaked[:10]))} stand in what the attacker is shown, "
            "so the attack would teach them. Leave these texts out of the attack's rows."
        )


def facts_of(rows: AuditSet, by: str | None = None) -> list[Hashable]:
    """What each row tells: rows of one fact go to one side of a split.

    Args:
        rows ([`AuditSet`]): of questions or texts.
        by (`str`, *optional*): the column that names the fact; by default it is the words of the answer.

    Raises:
        `ValueError`: for a row without that column.
    """
    if by is None:
        column = "answer" if rows.is_qa else "text"
        return [words(row[column]) for row in rows.rows]
    if missing := [i for i, row in zip(rows.index, rows.rows, strict=True) if row.get(by) is None]:
        raise ValueError(
            f"fact_by={by!r}: row {missing[0]} of the {rows.name} set has no such value; its columns are "
            f"{', '.join(sorted(rows.rows[0]))}."
        )
    return [str(row[by]) for row in rows.rows]


def splits_by_seed(args: Any, prepared: Any) -> dict[int, tuple[list[int], list[int]]]:
    """For each of an attack's seeds the forget rows that it is made with, and those that are tested.

    Args:
        args ([`~hf_unlearn.audit.robustness.arguments.SplitArguments`]), prepared ([`RobustnessPrepared`]): of it.
    """
    facts, groups = facts_of(prepared.sets["forget"]), prepared.groups["forget"]
    return {seed: split_rows(groups, args.attacker_share, args.split, seed, facts) for seed in args.seeds}


def digests_of_shown(rows: Sequence[Any], splits: Mapping[int, tuple[list[int], list[int]]]) -> dict[str, str]:
    """A fingerprint of the rows that an attack is made with, by seed."""
    return {str(seed): rows_digest([rows[i] for i in shown]) for seed, (shown, _) in splits.items()}
