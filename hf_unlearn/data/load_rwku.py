# SPDX-License-Identifier: Apache-2.0
"""RWKU for some of its targets: what to train on, and what to ask."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .rwku.files import CORPORA, FLUENCY, MEMBERS, PROBES, RwkuFiles, Subset
from .rwku.targets import find_targets, other_targets


logger = logging.getLogger(__name__)

# In the place of a folder: the same about the embedded world's people.
EMBEDDED = "world/rwku"


@dataclass
class Rwku:
    """RWKU's rows about some of its targets.

    Args:
        targets (`dict[str, str]`):
            Ids to names.
        audit_sets (`dict[str, datasets.Dataset]`):
            Probes `forget_fb`, `forget_qa`, `forget_aa`, `neighbor_fb` and `neighbor_qa` with `question`, `answer`,
            `type` and `subject`; `forget_members` and `retain_members` with `text`, `fluency` with an instruction as
            `text`, each where its file is there.
        forget, retain (`datasets.Dataset`, *optional*):
            `text` and `subject` to train on: of the targets, and of others.
    """

    targets: dict[str, str]
    audit_sets: dict = field(repr=False)
    forget: object = field(default=None, repr=False)
    retain: object = field(default=None, repr=False)


def load_rwku(targets: Sequence[str] | None, path: str | Path | None = None, forget_split: str | None = None) -> Rwku:
    """Loads RWKU for some of its targets.

    Args:
        targets (`Sequence[str]`):
            Names or ids.
        path (`str` or `Path`, *optional*):
            Folder of its files (see [`RwkuFiles`]), or `world/rwku` for the embedded world's people. By default the
            Hub.
        forget_split (`str`, *optional*):
            The corpus to train on: `train_positive_llama3`, `train_positive_phi3` or `train_original_passage`.

    Raises:
        `ValueError`: for unknown targets or corpora, and for files that are missing or hold something else.
    """
    if forget_split not in (None, *CORPORA):
        raise ValueError(f"forget_split={forget_split!r}; RWKU has {', '.join(CORPORA)}.")
    files = _files(path)
    found = find_targets(targets, files.targets)
    names = list(found.values())
    sets = {name: _probes(files.rows(subset, names), name) for name, subset in PROBES.items()}
    for name, (subset, column) in _texts().items():
        rows = files.rows(subset, names, optional=True)
        if rows is not None:
            sets[name] = _as_texts(rows, column, name)
    if forget_split is None:
        return Rwku(found, sets)
    others = other_targets(found, files.targets)
    logger.info("Rows to keep are about %s.", ", ".join(others) or "nobody: there are no others")
    corpus = CORPORA[forget_split]
    retain = files.rows(corpus, others, optional=True) if others else None
    return Rwku(
        found,
        sets,
        forget=_as_texts(files.rows(corpus, names), "text", forget_split),
        retain=None if retain is None else _as_texts(retain, "text", forget_split),
    )


def load_probes(subset: str, targets: Sequence[str] | None, path: str | Path | None = None):
    """One subset's probes, without the other files: what an lm-eval task asks."""
    files = _files(path)
    return _probes(files.rows(PROBES[subset], list(find_targets(targets, files.targets).values())), subset)


def _files(path: str | Path | None) -> RwkuFiles:
    if path == EMBEDDED:
        from .worlds.rwku.world import rwku_world

        path = rwku_world()
    return RwkuFiles(None if path is None else Path(path))


def _texts() -> dict[str, tuple[Subset, str]]:
    return {
        **{name: (subset, "text") for name, subset in MEMBERS.items()},
        **{name: (subset, "instruction") for name, subset in FLUENCY.items()},
    }


def _probes(rows, name: str):
    """A probe's columns under the names that audits have; attack types in one spelling."""
    _check(rows, name, ("query", "answer"))
    kept = [column for column in ("query", "answer", "type", "subject") if column in rows.column_names]
    rows = rows.select_columns(kept).rename_column("query", "question")
    if "type" in rows.column_names:
        types = [None if kind is None else kind.strip().casefold() for kind in rows["type"]]
        return rows.remove_columns("type").add_column("type", types)
    return rows


def _as_texts(rows, column: str, name: str):
    _check(rows, name, (column,))
    rows = rows.select_columns([column, *(["subject"] if "subject" in rows.column_names else [])])
    return rows if column == "text" else rows.rename_column(column, "text")


def _check(rows, name: str, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(f"RWKU's {name} has the columns {rows.column_names}, and no {' and '.join(missing)}.")
