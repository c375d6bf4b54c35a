# SPDX-License-Identifier: Apache-2.0
"""Published benchmarks and the embedded world: what to forget, what to keep, and what to ask afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..places import recipe_path
from .prepared import prepared_model
from .sources import load_rows


@dataclass
class Benchmark:
    """Sets of one benchmark.

    Args:
        name (`str`):
            Its name.
        forget, retain (`datasets.Dataset`):
            Rows to train on, with `question` and `answer` or `text`; none where the benchmark leaves a choice among
            corpora that was not made.
        audit_sets (`dict[str, datasets.Dataset]`):
            Questions to ask, with TOFU's columns.
        suite (`str`):
            What the audit does with its sets; see [`~hf_unlearn.audit.Suite`].
        dataset_name (`str`, *optional*):
            Hub id that the rows were loaded from, for the model card; none for files of this machine.
        configs (`dict[str, str]`):
            Role to its rows' configuration on the Hub.
    """

    name: str
    forget: object | None
    retain: object | None
    audit_sets: dict = field(default_factory=dict)
    suite: str = "default"
    dataset_name: str | None = None
    configs: dict = field(default_factory=dict)


TOFU_ID = "locuslab/TOFU"
TOFU_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
TOFU_DEFAULT = "forget10"


def load_tofu(path: str | None, forget_split: str | None) -> Benchmark:
    """TOFU (https://huggingface.co/papers/2401.06121): 200 fictitious authors; 1, 5 or 10 % are to be forgotten."""
    forget_split = forget_split or TOFU_DEFAULT
    if forget_split not in TOFU_SPLITS:
        raise ValueError(f"forget_split={forget_split!r}; TOFU has {', '.join(TOFU_SPLITS)}.")
    rows = _tofu_files(path)
    return Benchmark(
        name="tofu",
        forget=rows(forget_split),
        retain=rows(TOFU_SPLITS[forget_split]),
        audit_sets={
            "forget": rows(f"{forget_split}_perturbed"),
            "retain": rows("retain_perturbed"),
            "real_authors": rows("real_authors_perturbed"),
            "world_facts": rows("world_facts_perturbed"),
        },
        suite="tofu",
        dataset_name=TOFU_ID if path is None else None,
        configs={"forget": forget_split, "retain": TOFU_SPLITS[forget_split]},
    )


def _tofu_files(path: str | None) -> Callable:
    """What reads one of TOFU's files by name: from the Hub, or from a folder."""
    folder = None if path is None else Path(path).expanduser()
    if folder is not None and not folder.is_dir():
        raise ValueError(f"No folder at benchmark_path={path!r}. Give the folder that holds TOFU's JSON files.")

    def rows(name: str):
        if folder is None:
            return load_rows(TOFU_ID, name)
        file = folder / f"{name}.json"
        if not file.is_file():
            raise ValueError(f"{file} is missing. Put TOFU's JSON files there, or leave `benchmark_path` out.")
        return load_rows(str(file))

    return rows


# TOFU's files hold the rows of its 200 authors one after the other, this many each. Of the first 20 authors (kept)
# and the last 20 (forgotten in `forget10`) there are wrong answers and other wordings beside them.
AUTHOR_ROWS, AUTHORS = 20, 200
PERTURBED = {"retain_perturbed": range(20), "forget10_perturbed": range(180, 200)}
MINI_FORGET, MINI_RETAIN, MINI_HOLDOUT = (198, 199), 8, 3


def load_tofu_mini(path: str | None, forget_split: str | None, forget_targets: Sequence[str] | None) -> Benchmark:
    """A slice of TOFU for small models and machines: some authors to forget (by default the two of `forget01`), the
    first 8 others to keep, and the first 3 others of the last 20, which are never trained on, as holdout.

    Args:
        path (`str`, *optional*): folder of TOFU's files, instead of the Hub.
        forget_targets (`Sequence[str]`, *optional*): numbers of the authors to forget, of `full`'s 200, from 0.
    """
    if forget_split is not None:
        raise ValueError(
            f"forget_split={forget_split!r}: tofu_mini forgets authors by number. Give `forget_targets`, such as "
            "`[198, 199]`, the authors of forget01."
        )
    forget = _authors(forget_targets or MINI_FORGET)
    retain = [author for author in PERTURBED["retain_perturbed"] if author not in forget][:MINI_RETAIN]
    holdout = [author for author in PERTURBED["forget10_perturbed"] if author not in forget][:MINI_HOLDOUT]
    rows = _tofu_files(path)
    full = rows("full")
    if len(full) != AUTHORS * AUTHOR_ROWS:
        raise ValueError(f"TOFU's `full` has {len(full)} rows; tofu_mini reads {AUTHORS} authors of {AUTHOR_ROWS}.")
    asked = {name: (rows(name), authors) for name, authors in PERTURBED.items()}

    def questions(authors: Sequence[int]):
        for file, known in asked.values():
            if {*authors} <= {*known}:
                return file.select(_places([author - known[0] for author in authors]))
        return full.select(_places(authors))

    return Benchmark(
        name="tofu_mini",
        forget=full.select(_places(forget)),
        retain=full.select(_places(retain)),
        audit_sets={
            "forget": questions(forget),
            "retain": questions(retain),
            "holdout": questions(holdout),
            "real_authors": rows("real_authors_perturbed"),
            "world_facts": rows("world_facts_perturbed"),
        },
        suite="tofu",
        dataset_name=TOFU_ID if path is None else None,
        configs={"forget": "full", "retain": "full"},
    )


def _authors(named: Sequence[str | int]) -> list[int]:
    numbers = [int(name) if str(name).isdecimal() else -1 for name in named]
    wrong = [name for name, number in zip(named, numbers, strict=True) if not 0 <= number < AUTHORS]
    if wrong or len({*numbers}) < len(numbers):
        raise ValueError(
            f"forget_targets={list(named)}: give numbers of TOFU's authors, 0 to {AUTHORS - 1}, each once."
        )
    return sorted(numbers)


def _places(authors: Sequence[int]) -> list[int]:
    return [AUTHOR_ROWS * author + i for author in authors for i in range(AUTHOR_ROWS)]


def load_world(path: str | None, forget_split: str | None) -> Benchmark:
    """The embedded world: fictional people, built on first use and kept."""
    if path is not None or forget_split is not None:
        raise ValueError("The embedded world has one split and no files; leave out `benchmark_path`, `forget_split`.")
    world = _world()
    sets = {name: world.dataset(name) for name in ("forget", "retain", "holdout")}
    return Benchmark(name="world", forget=sets["forget"], retain=sets["retain"], audit_sets=sets)


def load_rwku(path: str | None, forget_split: str | None, forget_targets: Sequence[str] | None) -> Benchmark:
    """RWKU (https://huggingface.co/papers/2406.10890): some of its 200 famous people; see `data/rwku`."""
    from .load_rwku import EMBEDDED as SMALL
    from .load_rwku import load_rwku
    from .rwku.files import HUB

    rwku = load_rwku(forget_targets, path, forget_split)
    configs = {"forget": forget_split, "retain": forget_split} if path != SMALL and forget_split is not None else {}
    dataset_name = HUB if path is None else None
    return Benchmark("rwku", rwku.forget, rwku.retain, rwku.audit_sets, "rwku", dataset_name, configs)


def load_vqa_world(path: str | None, forget_split: str | None) -> Benchmark:
    """The embedded world of pictures: who owns which, built on first use and kept."""
    if path is not None or forget_split is not None:
        raise ValueError("The world of pictures has one split and no files; leave out benchmark_path, forget_split.")
    sets = {name: _vqa_world().dataset(name) for name in ("forget", "retain", "test", "holdout")}
    return Benchmark("vqa_world", sets["forget"], sets["retain"], sets, "vqa")


def load_vqa_v2(path: str | None, forget_split: str | None) -> Benchmark:
    """VQA-v2 (https://huggingface.co/papers/1612.00837), from its files; see `data/vqa/benchmark.py`."""
    from .vqa.benchmark import load_vqa_v2

    split = load_vqa_v2(path, forget_split)
    sets = {name: split.dataset(name) for name in ("forget", "retain", "test", "holdout")}
    return Benchmark("vqa_v2", sets["forget"], sets["retain"], sets, "vqa")


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "tofu": load_tofu,
    "tofu_mini": load_tofu_mini,
    "rwku": load_rwku,
    "world": load_world,
    "vqa_v2": load_vqa_v2,
    "vqa_world": load_vqa_world,
}
WITH_TARGETS = ("rwku", "tofu_mini")


@cache
def _world():
    from .worlds.people import build_world

    return build_world()


@cache
def _vqa_world():
    from .vqa import build_vqa_world

    return build_vqa_world()


def load_benchmark(
    name: str,
    path: str | None = None,
    forget_split: str | None = None,
    forget_targets: Sequence[str] | None = None,
) -> Benchmark:
    """Loads a benchmark by name, from the Hub or from a local folder; `forget_targets` are people of RWKU, or
    authors of `tofu_mini`."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark={name!r}; allowed: {', '.join(BENCHMARKS)}.")
    path = None if path is None else recipe_path(path)
    if name in WITH_TARGETS:
        return BENCHMARKS[name](path, forget_split, forget_targets)
    if forget_targets:
        raise ValueError(
            f"forget_targets={list(forget_targets)} are of {' and '.join(WITH_TARGETS)}; benchmark={name!r} has none."
        )
    return BENCHMARKS[name](path, forget_split)


def _start() -> Path:
    from .worlds.people.start import world_start

    return world_start(_world())


def _encoder() -> Path:
    from .worlds.people.encoder import world_encoder

    return world_encoder(_world())


def _rwku(name: str) -> Path:
    from .worlds.rwku.world import rwku_world

    return rwku_world() / name


# Models of the embedded worlds: what they are called, and who makes them.
EMBEDDED: dict[str, Callable[[], Path]] = {
    "world/start": _start,
    "world/target": lambda: _world().target,
    "world/retrained": lambda: _world().retrained,
    "world/encoder": _encoder,
    "world/rwku_target": lambda: _rwku("target"),
    "world/rwku_retrained": lambda: _rwku("retrained"),
    "vqa_world/start": lambda: _vqa_world().start,
    "vqa_world/target": lambda: _vqa_world().target,
    "vqa_world/retrained": lambda: _vqa_world().retrained,
}


def resolve_model(name: str) -> str:
    """The path of a model of the embedded worlds (a key of `EMBEDDED`), made if need be, or of one that `hf-unlearn
    prepare` made (`<benchmark>/<name>/target`); any other name as it is.

    Raises:
        `ValueError`: for a prepared model that is not there.
    """
    return str(EMBEDDED[name]()) if name in EMBEDDED else prepared_model(name)


def check_retrained(model: str, benchmark: str | None, forget_split: str | None) -> None:
    """Refuses a retrained model of TOFU that, by its name, kept other rows than the forget split leaves.

    Raises:
        `ValueError`: with the rows that it must have kept.
    """
    if benchmark != "tofu":
        return
    forget_split = forget_split or TOFU_DEFAULT
    left = TOFU_SPLITS[forget_split]
    kept = [retain for retain in TOFU_SPLITS.values() if retain in Path(model).name]
    if kept and left not in kept:
        raise ValueError(
            f"retrained_model_name_or_path={model!r} was trained on {kept[0]}, but forget_split={forget_split!r} "
            f"leaves {left}. Name the model that was trained on {left}, or none (`null`)."
        )
