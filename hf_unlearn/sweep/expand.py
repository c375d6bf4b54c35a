# SPDX-License-Identifier: Apache-2.0
"""From what is asked for to the runs themselves."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs.blocks import NAME as ATTACKS
from ..runs.blocks import attack_kinds
from ..runs.parser import read_yaml
from .spec import Entry, Spec, Variation
from .targets import fill_in


# Of a resolved recipe, what says where and under which name, not what.
PLACE_FIELDS = ("output_dir", "run_name")
RUNS_DIR = "runs"
LONGEST_NAME = 120


@dataclass
class Run:
    """One run of a sweep.

    Args:
        name (`str`): unique and readable; its folder's name.
        id (`str`): hash of what it does; the same wherever it is done.
        label (`str`): its recipe's name in the sweep.
        recipe (`str`): the file it comes from.
        method (`str`): the recipe's.
        setting (`dict`): the fields that vary between runs of its recipe, seed and target aside.
        tags (`list[str]`): of the sweep and of its entry.
        seed (`int`): of the run.
        tuning (`bool`): whether settings were chosen on this seed.
        target (`str`, *optional*): id of what is forgotten.
        folder (`Path`): its `output_dir`.
        content (`dict`): the recipe that is run.
        resolved (`dict`): every field that was given and every setting that decides the result.
        privacy (`dict`, *optional*): fields of its membership-inference audit.
    """

    name: str
    id: str
    label: str
    recipe: str
    method: str
    setting: dict[str, Any]
    tags: list[str]
    seed: int
    tuning: bool
    target: str | None
    folder: Path
    content: dict[str, Any] = field(repr=False)
    resolved: dict[str, Any] = field(repr=False)
    privacy: dict[str, Any] | None = field(default=None, repr=False)


def expand(spec: Spec, folder: Path, resolve: Callable[[dict, Path], tuple[str, dict]]) -> list[Run]:
    """All runs of a sweep, every recipe parsed; entries that come to the same run are one, with all their tags.

    Args:
        spec ([`Spec`]): what is asked for.
        folder (`Path`): of the sweep.
        resolve (`Callable`): of a recipe's content and its file, gives the method and the resolved recipe.

    Raises:
        `ValueError`: for a recipe that cannot be parsed, or targets that change nothing.
    """
    runs: dict[str, Run] = {}
    names: set[str] = set()
    for entry, variation, target, seed in _points(spec):
        run = _run(spec, folder, entry, variation, target, seed, resolve)
        known = runs.get(run.id)
        if known is None:
            while run.name in names:
                run.name, run.folder = _renamed(run)
            names.add(run.name)
            runs[run.id] = run
            _set_place(run)
        elif known.target != run.target:
            raise ValueError(
                f"{spec.path}: the targets {known.target!r} and {run.target!r} come to the same run of "
                f"{entry.recipe}. Let a field of it hold `{{id}}` or another field of the targets, such as "
                "`forget_dataset: data/{id}.jsonl`."
            )
        elif known.label != run.label:
            raise ValueError(f"{spec.path}: {known.name!r} and {run.name!r} are the same run. Leave one out.")
        else:
            known.tags = list(dict.fromkeys([*known.tags, *run.tags]))
    return list(runs.values())


def variations(entry: Entry) -> list[Variation]:
    """The grid's combinations and the single settings; the recipe as it is where neither is given."""
    combinations = itertools.product(*entry.grid.values()) if entry.grid else ()
    gridded = [Variation(dict(zip(entry.grid, values, strict=True))) for values in combinations]
    return [*gridded, *entry.runs] or [Variation({})]


def _points(spec: Spec) -> Iterator[tuple[Entry, Variation, dict | None, int | None]]:
    for entry in spec.entries:
        yield from itertools.product([entry], variations(entry), spec.targets or [None], spec.seeds or [None])


def _run(spec: Spec, folder: Path, entry: Entry, variation: Variation, target, seed, resolve) -> Run:
    content = {**read_yaml(entry.recipe), **entry.fields, **variation.setting}
    if target is not None:
        content = fill_in(content, target)
    if seed is not None:
        content["seed"] = seed
    # A step of its own, after the run: other options of it need no other training.
    privacy = content.pop("privacy", None)
    if isinstance(audits := content.get("audits"), dict) and "privacy" in audits:
        content["audits"] = {kind: asked for kind, asked in audits.items() if kind != "privacy"} or None
        privacy = audits["privacy"] or {} if privacy is None else privacy
    privacy = privacy if spec.privacy is None else spec.privacy
    if seed is not None and seed == spec.tuning_seed:
        content, privacy = _what_chooses(spec, content, privacy)
    # A place that stands for all: the parser makes one of the recipe's own where none is given.
    content |= {"output_dir": str(folder), "run_name": "run"}
    name = _name(entry, variation, target, seed)
    try:
        method, resolved = resolve(content, entry.recipe)
    except ValueError as error:
        raise ValueError(f"{spec.path}: {name}: {error}") from error
    if content.get("audit") is False:
        raise ValueError(f"{spec.path}: {entry.recipe} has `audit: false`, and a sweep is made of audits.")
    used = resolved["seed"]
    return Run(
        name=name,
        id=run_id(resolved),
        label=entry.name,
        recipe=str(entry.recipe),
        method=method,
        setting=variation.setting,
        tags=list(dict.fromkeys([*spec.tags, *variation.tags])),
        seed=used,
        tuning=used == spec.tuning_seed,
        target=None if target is None else target["id"],
        folder=folder / RUNS_DIR / name,
        content=content,
        resolved=resolved,
        privacy=privacy,
    )


def _what_chooses(spec: Spec, content: dict, privacy: dict | None) -> tuple[dict, dict | None]:
    """A recipe's content and privacy audit without the audits that a run needs only once its setting is chosen."""
    content = {key: value for key, value in content.items() if key != ATTACKS or spec.tunes_by(attack_kinds())}
    if isinstance(audits := content.get("audits"), dict):
        content["audits"] = {kind: asked for kind, asked in audits.items() if spec.tunes_by([kind])} or None
    return content, privacy if spec.tunes_by(["privacy"]) else None


def run_id(resolved: dict[str, Any]) -> str:
    """Hash of what a recipe does."""
    what = {key: value for key, value in resolved.items() if key not in PLACE_FIELDS}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _name(entry: Entry, variation: Variation, target: dict | None, seed: int | None) -> str:
    varied = variation.tags or [f"{key}={_short(value)}" for key, value in variation.setting.items()]
    parts = [entry.name, *varied]
    parts += [] if target is None else [target["id"]]
    parts += [] if seed is None else [f"seed{seed}"]
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))[:LONGEST_NAME]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else str(value)


def _renamed(run: Run) -> tuple[str, Path]:
    """A name of its own where cutting and replacing left two alike."""
    name = f"{run.name}-{run.id}"
    return name, run.folder.with_name(name)


def _set_place(run: Run) -> None:
    for where in (run.content, run.resolved):
        where |= {"output_dir": str(run.folder), "run_name": run.name}
