# SPDX-License-Identifier: Apache-2.0
"""SWEEP.yaml: what is asked for, read strictly."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..report.sweep.rules import Rule, read_rule
from ..yaml_file import load_yaml
from .slurm import SLURM_KEYS
from .targets import read_targets


KEYS = {
    "name": str,
    "recipes": (str, list),
    "fields": dict,
    "grid": dict,
    "runs": list,
    "seeds": list,
    "tuning_seed": int,
    "stages": int,
    "targets": (str, list),
    "privacy": dict,
    "select": (str, dict),
    "metrics": list,
    "dominance": list,
    "retrained_seconds": (int, float),
    "tags": list,
    "accelerate_config": str,
    "slurm": dict,
    "output_dir": str,
}
ENTRY_KEYS = {"recipe": str, "name": str, "fields": dict, "grid": dict, "runs": list}
RUN_KEYS = {"tag": str, "fields": dict}
# Set by the sweep itself.
RESERVED = ("output_dir", "run_name", "resume_from_checkpoint", "overwrite_output")


@dataclass(frozen=True)
class Variation:
    """Fields that differ from the recipe's, and the tags of the runs that have them."""

    setting: dict[str, Any]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One recipe and its variations.

    Args:
        name (`str`): what its runs and its rows in tables are called.
        recipe (`Path`): its file.
        fields (`dict`): what differs in all its runs.
        grid (`dict[str, list]`): field to values; all combinations are run.
        runs (`list[Variation]`): more settings, one by one.
    """

    name: str
    recipe: Path
    fields: dict[str, Any]
    grid: dict[str, list]
    runs: list[Variation]


@dataclass
class Spec:
    """What a sweep file asks for; see `docs/sweep.md`."""

    path: Path
    name: str
    entries: list[Entry]
    select: Rule
    seeds: list[int] | None = None
    tuning_seed: int | None = None
    stages: int = 1
    targets: list[dict] = field(default_factory=list)
    privacy: dict | None = None
    metrics: list[str] | None = None
    dominance: list[str] | None = None
    retrained_seconds: float | None = None
    tags: list[str] = field(default_factory=list)
    accelerate_config: str | None = None
    slurm: dict = field(default_factory=dict)
    output_dir: str | None = None

    def tunes_by(self, kinds: Iterable[str]) -> bool:
        """Whether runs of the tuning seed need these audits: with two stages only if `select` reads one's metric."""
        read = (metric.partition("/")[0] for metric in (self.select.forget, self.select.utility) if metric)
        return self.stages == 1 or not {*kinds}.isdisjoint(read)

    def settings(self) -> dict[str, Any]:
        """What a report of the sweep needs to know of it."""
        return {
            "name": self.name,
            "file": self.path.as_posix(),
            "select": self.select.to_dict(),
            "tuning_seed": self.tuning_seed,
            "metrics": self.metrics,
            "dominance": self.dominance,
            "retrained_seconds": self.retrained_seconds,
        }


def read_spec(path: str | Path, fields: dict[str, Any] | None = None) -> Spec:
    """Reads a sweep file.

    Args:
        path (`str` or `Path`): the file.
        fields (`dict`, *optional*): of every run, before what the file says.

    Raises:
        `ValueError`: for an unknown key, a wrong type, a file that is not there, or settings that contradict.
    """
    path = Path(path)
    content = _load(path)
    where = str(path)
    _check_keys(content, KEYS, where)
    if not content.get("recipes"):
        raise ValueError(f"{where}: no recipes are named. Give `recipes`: one path, or a list of them.")
    seeds, tuning_seed = content.get("seeds"), content.get("tuning_seed")
    _check_seeds(seeds, tuning_seed, where)
    rule = read_rule(content.get("select", "last"), where)
    _check_stages(content.get("stages", 1), tuning_seed, seeds, rule, where)
    folders = [path.parent, Path()]
    retrained_seconds = content.get("retrained_seconds")
    if retrained_seconds is not None and retrained_seconds <= 0:
        raise ValueError(f"{where}: retrained_seconds={retrained_seconds}; give the seconds that retraining took.")
    _check_keys(content.get("slurm", {}), SLURM_KEYS, f"{where}: slurm")
    fields = fields or {}
    _check_reserved(fields, "command line")
    entries = [_overridden(entry, fields) for entry in _entries(content, folders, where)]
    if seeds is not None and any("seed" in _varied(entry) for entry in entries):
        raise ValueError(f"{where}: `seed` is among the fields, and `seeds` is given too. Leave out one of them.")
    for key in ("metrics", "dominance", "tags"):
        _check_texts(content.get(key), f"{where}: {key}")
    return Spec(
        path=path,
        name=content.get("name", path.stem),
        entries=entries,
        select=rule,
        seeds=seeds,
        tuning_seed=tuning_seed,
        stages=content.get("stages", 1),
        targets=read_targets(content["targets"], folders) if "targets" in content else [],
        privacy=content.get("privacy"),
        metrics=content.get("metrics"),
        dominance=content.get("dominance"),
        retrained_seconds=retrained_seconds,
        tags=content.get("tags", []),
        accelerate_config=content.get("accelerate_config"),
        slurm=content.get("slurm", {}),
        output_dir=content.get("output_dir"),
    )


def _load(path: Path) -> dict:
    content = load_yaml(path, f"No sweep file at {str(path)!r}. `ls recipes/sweeps` in a clone shows examples.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines: {', '.join(KEYS)}.")
    return content


def _check_keys(content: Any, known: Mapping[str, Any], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {content!r} is of a wrong type; give `key: value` lines: {', '.join(known)}.")
    for key, value in content.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(known)}."
            raise ValueError(f"{where}: unknown key {key!r}. {hint}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
            wanted = " or ".join({dict: "fields", list: "a list", str: "a text"}.get(k, "a number") for k in kinds)
            raise ValueError(f"{where}: {key}: {value!r} is of a wrong type; give {wanted}.")


def _check_seeds(seeds: list | None, tuning_seed: int | None, where: str) -> None:
    if seeds is not None:
        whole = seeds and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
        if not whole or len(set(seeds)) < len(seeds):
            raise ValueError(f"{where}: seeds={seeds}; give whole numbers, each once.")
    if tuning_seed is not None and tuning_seed not in (seeds or []):
        raise ValueError(
            f"{where}: tuning_seed={tuning_seed} is none of seeds={seeds}. It names the seed that settings were "
            "chosen on: it is run, shown apart, and kept out of all means."
        )


def _check_stages(stages: int, tuning_seed: int | None, seeds: list | None, rule: Rule, where: str) -> None:
    if stages not in (1, 2):
        raise ValueError(f"{where}: stages={stages}; allowed: 1 (all runs), 2 (the tuning seed's first).")
    if stages == 2 and (tuning_seed is None or len(seeds) < 2 or rule.kind not in ("best", "kept")):
        raise ValueError(
            f"{where}: stages=2 runs every setting on the tuning seed, and the one that `select` chooses on the "
            "others. Give `tuning_seed`, other `seeds` and a `select` that begins with `best`."
        )


def _check_texts(values: list | None, where: str) -> None:
    if values is not None and not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{where}={values!r}; give texts.")


def _entries(content: dict, folders: list[Path], where: str) -> list[Entry]:
    recipes = content["recipes"]
    shared = {key: content[key] for key in ("fields", "grid", "runs") if key in content}
    entries: dict[str, Entry] = {}
    for given in [recipes] if isinstance(recipes, str) else recipes:
        own = {"recipe": given} if isinstance(given, str) else given
        _check_keys(own, ENTRY_KEYS, f"{where}: recipes")
        if "recipe" not in own:
            raise ValueError(f"{where}: recipes: {given!r} names no `recipe`.")
        entry = _entry(own, shared, folders, where)
        if entry.name in entries:
            raise ValueError(
                f"{where}: two recipes are called {entry.name!r}. Write `- {{recipe: {own['recipe']}, name: ...}}` "
                "for one of them."
            )
        entries[entry.name] = entry
    return list(entries.values())


def _entry(own: dict, shared: dict, folders: list[Path], where: str) -> Entry:
    path = find_recipe(own["recipe"], folders, where)
    name = own.get("name", path.stem)
    if not name or set(name) & set(",/\\ "):
        raise ValueError(f"{where}: a recipe's name {name!r} becomes part of a folder's; leave out , / \\ and spaces.")
    fields = {**shared.get("fields", {}), **own.get("fields", {})}
    grid = {**shared.get("grid", {}), **own.get("grid", {})}
    runs = [_variation(run, where) for run in (*shared.get("runs", []), *own.get("runs", []))]
    for values in (fields, grid, *(run.setting for run in runs)):
        _check_reserved(values, where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: grid: {key}: {values!r}; give a list of values, or put it into `fields`.")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"{where}: grid: {key}: {values} holds a value twice.")
    tags = [tag for run in runs for tag in run.tags]
    if len(set(tags)) < len(tags):
        raise ValueError(f"{where}: runs: the tags {tags} of {name!r} are not all different; they name the runs.")
    return Entry(name, path, fields, grid, runs)


def _overridden(entry: Entry, fields: dict[str, Any]) -> Entry:
    if varied := _differing(entry) & {*fields}:
        raise ValueError(f"--{min(varied)}: the sweep file varies it in runs of {entry.name!r}. Change the file.")
    return replace(entry, fields={**entry.fields, **fields})


def _varied(entry: Entry) -> set[str]:
    return {*entry.fields, *_differing(entry)}


def _differing(entry: Entry) -> set[str]:
    """What differs between an entry's runs."""
    return {*entry.grid, *(name for run in entry.runs for name in run.setting)}


def _variation(run: Any, where: str) -> Variation:
    _check_keys(run, RUN_KEYS, f"{where}: runs")
    if not run.get("tag") or set(run["tag"]) & set(",/\\ ") or "fields" not in run:
        raise ValueError(
            f"{where}: runs: {run!r}; give `tag` (a word without comma, space and path separator) and `fields`."
        )
    return Variation(run["fields"], (run["tag"],))


def _check_reserved(names: Iterable[str], where: str) -> None:
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise ValueError(f"{where}: {', '.join(taken)} cannot be given: every run gets its own from the sweep.")


def find_recipe(name: str, folders: list[Path], where: str) -> Path:
    """A recipe beside the sweep file, in the working folder, or among those that are shipped."""
    package = Path(__file__).parents[1]
    for folder in (*folders, package):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{where}: no recipe at {name!r}, neither beside the sweep file nor in the working folder.")
