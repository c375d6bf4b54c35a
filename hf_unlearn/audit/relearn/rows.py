# SPDX-License-Identifier: Apache-2.0
"""What the attacker is shown, and what is asked about: chosen before a model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.sources import load_rows
from ..robustness.rows import RobustnessPrepared, encoded_rows
from ..robustness.splits import check_leaks, facts_of, split_rows
from ..sets import AuditSet, read_sets, rows_digest
from .arguments import OWN_ROWS, RelearnArguments


# Rows to be kept that are asked about after so many steps each.
UTILITY_ROWS = 32


@dataclass
class Attack:
    """One seed's rows.

    Args:
        shown (`list[dict]`): encoded rows that the attacker trains on.
        tested (`list[int]`): places of the forget rows that are asked about.
        retain, holdout (`list[int]`): places of rows of these sets that are asked about too.
        apart (`list[dict]`): rows of the holdout set for an attack of its own, in place of `shown`.
        about (`dict`): what is told of the attacker's rows.
    """

    shown: Sequence[Mapping[str, Any]]
    tested: list[int]
    retain: list[int]
    holdout: list[int]
    apart: Sequence[Mapping[str, Any]]
    about: dict[str, Any]


def attack_rows(args: RelearnArguments, prepared: RobustnessPrepared) -> dict[int, Attack]:
    """The rows of the attack by seed; those of a set of their own are added to `prepared.rows` as `relearn`.

    Raises:
        `ValueError`: for sets that are missing, and answers that the attack would teach.
    """
    if args.data in OWN_ROWS:
        config, split = args.relearn_dataset_config, args.relearn_dataset_split
        found = load_rows(args.relearn_dataset, config, split, prepared.tokenizer, args.max_length)
        (own,) = read_sets({"relearn": found}, {"relearn": "relearn"}, args.max_items, args.seeds[0])
        prepared.sets["relearn"] = own
        prepared.rows["relearn"] = encoded_rows(own, prepared.tokenizer, prepared.qa, args.max_length)
    if args.data in ("retain", "holdout") and args.data not in prepared.sets:
        raise ValueError(f"data={args.data!r} requires `--{args.data}_dataset`, or a benchmark that has such rows.")
    if args.shuffled and not prepared.sets[_source(args)].is_qa:
        raise ValueError("shuffled=True requires the attacker's rows to be questions and answers; these are texts.")
    return {seed: _of_seed(args, prepared, seed) for seed in args.seeds}


def _source(args: RelearnArguments) -> str:
    return "forget" if args.data in ("split", "teach") else "relearn" if args.data in OWN_ROWS else args.data


def _of_seed(args: RelearnArguments, prepared: RobustnessPrepared, seed: int) -> Attack:
    source, everything = _source(args), list(range(len(prepared.rows["forget"])))
    tested, apart, asked = everything, [], {name: [*range(len(prepared.rows.get(name, [])))] for name in _OTHERS}
    if args.data == "split":
        shown, tested = _halves(args, prepared, "forget", seed)
    elif args.data in ("retain", "holdout"):
        shown, asked[args.data] = _halves(args, prepared, source, seed)
    else:
        shown = [*range(len(prepared.rows[source]))]
    if args.data != "teach":
        _check(args, prepared, source, shown, tested)
    if args.comparator in ("retrained", "none") or "holdout" not in prepared.rows:
        asked["holdout"] = []
    elif args.data == "split":
        # What the attack brings out of rows that no model saw, they being attacked as the forget rows are.
        apart, asked["holdout"] = _halves(args, prepared, "holdout", seed)
    elif args.data == "teach":
        apart = asked["holdout"]
    rng = np.random.default_rng(seed)
    kept = sorted(rng.permutation(asked["retain"])[:UTILITY_ROWS].tolist())
    return Attack(
        [prepared.rows[source][i] for i in shown],
        tested,
        kept,
        asked["holdout"],
        [prepared.rows["holdout"][i] for i in apart],
        _about(args, prepared, source, shown),
    )


_OTHERS = ("retain", "holdout")


def _halves(args: RelearnArguments, prepared: RobustnessPrepared, name: str, seed: int):
    facts = facts_of(prepared.sets[name], args.fact_by if name == "forget" else None)
    share = args.attacker_share if args.data == "split" else 0.5
    return split_rows(prepared.groups[name], share, args.split, seed, facts)


def _check(args: RelearnArguments, prepared: RobustnessPrepared, source: str, shown: list[int], tested: list[int]):
    """Refuses what would teach a tested answer. Rows to be kept taught it before the attack, if they hold it."""
    if source == "retain":
        return
    forget = prepared.sets["forget"]
    column = "answer" if forget.is_qa else "text"
    texts = [_text(prepared.sets[source].rows[i]) for i in shown]
    check_leaks(texts, [forget.rows[i][column] for i in tested], [forget.index[i] for i in tested])


def _text(row: Mapping[str, Any]) -> str:
    return f"{row['question']} {row['answer']}" if "question" in row else row["text"]


def _about(args: RelearnArguments, prepared: RobustnessPrepared, source: str, shown: list[int]) -> dict[str, Any]:
    """What the attacker's rows are, and how many of them stand in which set: an attack with rows of the retain set
    says little about forgotten ones, whatever it is called."""
    rows = [prepared.rows[source][i] for i in shown]
    ids = [tuple(row["input_ids"]) for row in rows]
    known = {name: {tuple(row["input_ids"]) for row in prepared.rows.get(name, [])} for name in ("forget", *_OTHERS)}
    stand_in = {name: sum(one in held for one in ids) for name, held in known.items()}
    return {
        "data": args.data,
        "rows": len(rows),
        "fingerprint": rows_digest(rows),
        "of": {name: count for name, count in stand_in.items() if count},
    }


def shuffled_rows(args: RelearnArguments, prepared: RobustnessPrepared, seed: int) -> list[Mapping[str, Any]]:
    """The attacker's rows with each other's answers."""
    source = _source(args)
    rows, wanted = prepared.sets[source], {tuple(row["input_ids"]) for row in _of_seed(args, prepared, seed).shown}
    places = [i for i, row in enumerate(prepared.rows[source]) if tuple(row["input_ids"]) in wanted]
    order = np.random.default_rng(seed).permutation(len(places))
    # A cycle: no row keeps its own answer.
    answers = {places[a]: rows.rows[places[b]]["answer"] for a, b in zip(order, np.roll(order, 1), strict=True)}
    mixed = [{"question": rows.rows[i]["question"], "answer": answers[i]} for i in places]
    return encoded_rows(
        AuditSet(rows.name, rows.role, mixed, [rows.index[i] for i in places]),
        prepared.tokenizer,
        prepared.qa,
        args.max_length,
    )
