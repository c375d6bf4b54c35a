# SPDX-License-Identifier: Apache-2.0
"""Published benchmarks and the embedded world: what to forget, what to keep, and what to ask afterwards."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .sources import load_rows


@dataclass
class Benchmark:
    """Sets of one benchmark.

    Args:
        name (`str`):
            Its name.
        forget, retain (`datasets.Dataset`):
            Rows to train on, with `question` and `answer`.
        audit_sets (`dict[str, datasets.Dataset]`):
            Questions to ask, with TOFU's columns.
        suite (`str`):
            What the audit does with its sets; see [`~hf_unlearn.audit.Suite`].
        dataset_name (`str`, *optional*):
            Hub id, for the model card.
        configs (`dict[str, str]`):
            Role to its rows' configuration on the Hub.
    """

    name: str
    forget: object
    retain: object
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
        dataset_name=TOFU_ID,
        configs={"forget": forget_split, "retain": TOFU_SPLITS[forget_split]},
    )


def load_world(path: str | None, forget_split: str | None) -> Benchmark:
    """The embedded world: fictional people, built on first use and kept."""
    if path is not None or forget_split is not None:
        raise ValueError("The embedded world has one split and no files; leave out `benchmark_path`, `forget_split`.")
    world = _world()
    sets = {name: world.dataset(name) for name in ("forget", "retain", "holdout")}
    return Benchmark(name="world", forget=sets["forget"], retain=sets["retain"], audit_sets=sets)


BENCHMARKS: dict[str, Callable[[str | None, str | None], Benchmark]] = {"tofu": load_tofu, "world": load_world}


@cache
def _world():
    from .synthetic import build_world

    return build_world()


def load_benchmark(name: str, path: str | None = None, forget_split: str | None = None) -> Benchmark:
    """Loads a benchmark by name, from the Hub or from a local folder."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark={name!r}; allowed: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name](path, forget_split)


def resolve_model(name: str) -> str:
    """Paths of the embedded world's models, `world/target`, `world/retrained` and `world/encoder`; any other name as
    it is."""
    if name not in ("world/target", "world/retrained", "world/encoder"):
        return name
    world = _world()
    if name == "world/encoder":
        from .synthetic.encoder import world_encoder

        return str(world_encoder(world))
    return str(world.target if name == "world/target" else world.retrained)


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
