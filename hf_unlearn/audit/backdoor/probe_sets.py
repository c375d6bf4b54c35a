# SPDX-License-Identifier: Apache-2.0
"""From sets of rows, or MUSE's files, to what a backdoor audit asks."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...data.qa import QAFormat
from ..muse.data import MuseSets
from ..muse.measure import KNOWMEM_TOKENS
from ..sets import AuditSet, read_sets, some_rows
from ..suites import get_suite
from .probes import FewShotProbe, PassageProbe, Probe, QuestionProbe, TextProbe


POISONED = "poisoned"


def question_probes(
    sets: Mapping[str, Any],
    tokenizer: Any,
    *,
    qa: QAFormat | None = None,
    suite: str | None = None,
    poisoned: Sequence[int] | None = None,
    max_items: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int = 200,
    seed: int = 0,
) -> list[Probe]:
    """Probes of sets of questions or of texts, given as to [`audit_model`].

    Args:
        sets (`Mapping[str, datasets.Dataset | list[dict]]`):
            Rows with `question` and `answer`, or with `text`. A column `poisoned` says which rows carried the trigger
            in training.
        tokenizer (`PreTrainedTokenizerBase`):
            Decides whether questions are conversations.
        qa ([`~hf_unlearn.data.qa.QAFormat`], *optional*):
            How a question is put to the model.
        suite (`str`, *optional*):
            Gives the sets their roles.
        poisoned (`Sequence[int]`, *optional*):
            Instead of the column: places of those rows in the only forget set.
        max_items (`int`, *optional*):
            At most so many rows a set, drawn by `seed`.
        max_length (`int`, *optional*):
            Longest text in tokens.
        max_new_tokens (`int`):
            Longest generated answer.

    Raises:
        `ValueError`: for sets that an audit cannot read, or places where there is no row.
    """
    roles = get_suite(suite).roles_of(sets)
    chosen = read_sets(sets, roles, max_items, seed)
    forget = [data for data in chosen if data.role == "forget"]
    if poisoned is not None:
        if len(forget) != 1:
            raise ValueError(
                f"`poisoned` gives places in the forget set, and there are {len(forget)}. Give the rows a column "
                "`poisoned` instead."
            )
        _check_places(poisoned, forget[0].name, len(sets[forget[0].name]))
    qa = (qa or QAFormat()).settled(tokenizer)
    return [
        _probe(data, qa, poisoned if data.role == "forget" else None, max_new_tokens, max_length) for data in chosen
    ]


def muse_probes(
    muse: MuseSets, *, max_items: int | None = None, max_new_tokens: int = KNOWMEM_TOKENS, seed: int = 0
) -> list[Probe]:
    """Probes of MUSE: KnowMem of both roles, and VerbMem where there are passages.

    Args:
        muse ([`MuseSets`]):
            From [`load_muse`].
        max_items (`int`, *optional*):
            At most so many rows each, drawn by `seed`.
        max_new_tokens (`int`):
            Of KnowMem; 32 in MUSE, 50 in Unlearn-Backdoor.
    """
    probes: list[Probe] = [
        FewShotProbe(
            role,
            role,
            some_rows(rows, max_items, seed),
            _flags(rows, max_items, seed),
            max_new_tokens,
            examples=muse.examples[role],
        )
        for role, rows in muse.questions.items()
    ]
    if muse.passages:
        rows = muse.passages
        probes.append(
            PassageProbe("forget", "forget", some_rows(rows, max_items, seed), _flags(rows, max_items, seed))
        )
    return probes


def _probe(data: AuditSet, qa: QAFormat, poisoned, max_new_tokens: int, max_length: int | None) -> Probe:
    places = None if poisoned is None else set(poisoned)
    flags = _column(data.rows) if places is None else [i in places for i in data.index]
    if data.is_qa:
        return QuestionProbe(data.name, data.role, data.rows, flags, max_new_tokens, qa=qa)
    return TextProbe(data.name, data.role, data.rows, flags, max_length=max_length)


def _check_places(poisoned: Sequence[int], name: str, n: int) -> None:
    wrong = [i for i in poisoned if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < n]
    if wrong or not len(poisoned):
        raise ValueError(
            f"`poisoned` is {list(poisoned)[:5]}...; give places of rows in the set {name!r}, from 0 to {n - 1}."
        )


def _column(rows: Sequence[Mapping[str, Any]]) -> list[bool] | None:
    """What the rows' own column says, if they have one."""
    if not any(POISONED in row for row in rows):
        return None
    for i, row in enumerate(rows):
        if not isinstance(row.get(POISONED), (bool, int)) or row[POISONED] not in (0, 1):
            raise ValueError(f"Row {i}: `{POISONED}` is {row.get(POISONED)!r}; give true or false in every row.")
    return [bool(row[POISONED]) for row in rows]


def _flags(rows: Sequence[dict], max_items: int | None, seed: int) -> list[bool] | None:
    return _column(some_rows(rows, max_items, seed))
