# SPDX-License-Identifier: Apache-2.0
"""Every audit on every model of the pools, and what that says of the audits."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...audit.base import AuditResult
from ...audit.checkpoints import checkpoint_of
from ...audit.registry import AUDITS
from ...audit.result import MetricResult
from ...audit.robustness.recovery import SUPPRESSED, UNRESOLVED, verdict
from ...audit.robustness.result import Robustness
from ...data.worlds.people.world import World
from ...data.worlds.training import one_thread
from ...places import check_folder
from ...report.meta import write_meta
from ...versions import versions
from ..audit_cache import ResultCache
from ..audits import Measuring, read_block
from ..launch import command_line
from .arguments import Plan
from .building import Builder
from .members import LOCKS, ORIGINAL, POOLS, RETRAINED, Member, members_of
from .outputs import left, output_metrics
from .summary import HEADLINE, OUTPUT, summary


VERSION = 1
ANCHORS = (Member(ORIGINAL, share=1.0), Member(RETRAINED))
RETESTED = ("P0", "P2", "N0")


def evaluate_audits(plan: Plan, world: World, output_dir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Audits the audits.

    Models and what each audit finds in them are kept, so that a command that was ended goes on where it was.

    Args:
        plan ([`Plan`]): models and audits.
        world ([`World`]): whose people the models know, or do not.
        output_dir (`str` or `Path`): where `meta.json` and `meta.md` are written.
        progress (`bool`): progress bars.

    Returns:
        `dict`: the content of `meta.json`.

    Raises:
        `ValueError`: for settings that an audit refuses, before a model is made.
    """
    check_folder("output_dir", output_dir)
    members = members_of(plan.sizes)
    paths = dict.fromkeys(("model", ORIGINAL, RETRAINED), "model")
    for name, own in plan.audits.items():
        read_block(AUDITS[name], _fields(world, paths, own))
    builder = Builder(world, plan.steps, plan.learning_rate)
    everyone = tqdm([*ANCHORS, *members], desc="Making models", unit="model", disable=not progress)
    folders = {member: str(builder.path(member)) for member in everyone}
    models = [_about(member, folders[member]) for member in members]
    retests: dict[str, list[float]] = {}
    with one_thread():
        for member, audit, result in _outputs(world, folders, members, progress):
            models[members.index(member)]["results"][audit] = result
        for name, own in plan.audits.items():
            trial = Trial(name, own, world, folders)
            for member, result in trial.of(members, progress):
                models[members.index(member)]["results"][name] = result
            again = [member for member in members if member.pool in RETESTED and member.index < plan.retest]
            if trial.by_chance and again:
                firsts = [models[members.index(member)]["results"][name] for member in again]
                other = Trial(name, {**own, "seeds": [*plan.other_seeds]}, world, folders)
                retests[name] = _differences(firsts, [result for _, result in other.of(again, progress)])
    found = {
        "meta_version": VERSION,
        "title": "Which audits tell models that know from models that do not",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "settings": {**vars(plan), "world": world.path.name},
        "versions": versions(),
        "pools": POOLS,
        "locks": LOCKS,
        "models": models,
        "rows": summary(models, retests),
    }
    write_meta(found, output_dir)
    return found


class Trial:
    """One kind of audit on models of the pools."""

    def __init__(self, name: str, own: Mapping[str, Any], world: World, folders: Mapping[Member, str]):
        kind, self.name, self.folders = AUDITS[name], name, folders
        original, retrained = (folders[anchor] for anchor in ANCHORS)
        # Which model is named here has no part in the settings.
        first = next(path for member, path in folders.items() if member not in ANCHORS)
        args, qa = read_block(kind, _fields(world, {"model": first, ORIGINAL: original, RETRAINED: retrained}, own))
        self.measuring = Measuring(kind, args, qa, kind.prepare(args, qa), progress=False)
        self.by_chance = False

    def of(self, members: Sequence[Member], progress: bool) -> Iterator[tuple[Member, dict[str, Any]]]:
        """Each model, and what was found in it."""
        gold, original = self.measuring.retrained(), self.measuring.original()
        for member in tqdm(members, desc=f"Trying {self.name}", unit="model", disable=not progress):
            found = self.measuring.found(self.folders[member], gold, original=original)
            self.by_chance |= any(one.seed is not None for one in found.measured)
            yield member, read(found)


def read(found: Robustness) -> dict[str, Any]:
    """What an audit says of a model: every `remaining`, and what it took."""
    results = {name: result for name, result in found.metrics.items() if name.endswith("remaining")}
    return {
        "seconds": found.cost.get("seconds"),
        "metrics": {name: reading(result, results) for name, result in results.items()},
    }


def reading(result: MetricResult, others: Mapping[str, MetricResult] | None = None) -> dict[str, Any]:
    """One `remaining`.

    Of an audit's headline, parts that are unresolved count with their estimates: what is highest of these and of the
    resolved part is the score, since a part that stands open is where a locked model hides.

    Returns:
        `dict`: `score` (an estimate where it is unresolved), `interval` (of a resolved score), `alarm` (a gate fails),
        `open` (whether what was known is left is undecided) and `why`.
    """
    details, others = result.details, others or {}
    names = [name for name in details.get("open", [details.get("which")]) if name in others and name != result.name]
    parts = [result, *(others[name] for name in names if others[name].value is None)]
    said = details.get("verdict") or verdict([result])
    scores = [result.value, *(part.details.get("estimate") for part in parts)]
    score = max((score for score in scores if score is not None), default=None)
    why = [details.get("reason")] if result.value is None else [f"{name} is unresolved" for name in names]
    return {
        "score": score,
        "interval": None if result.interval is None or score != result.value else [*result.interval],
        "alarm": said == SUPPRESSED,
        "open": said == UNRESOLVED,
        "why": "; ".join(filter(None, why)) or None,
    }


def _outputs(
    world: World, folders: Mapping[Member, str], members: Sequence[Member], progress: bool
) -> Iterator[tuple[Member, str, dict[str, Any]]]:
    """What the metrics of the answers say of each model."""
    forget = list(world.dataset("forget"))
    groups = [row["person"] for row in forget]
    about = {"version": VERSION, "world": world.path.name, **versions()}
    cache = ResultCache(about, about, AuditResult, "meta_outputs")

    def measured(member: Member) -> AuditResult:
        found = cache.get(folders[member])
        if found is None:
            found = output_metrics(checkpoint_of(folders[member]), world.tokenizer, forget)
            cache.put(folders[member], found)
        return found

    original, retrained = (measured(anchor) for anchor in ANCHORS)
    for member in tqdm(members, desc="Trying the metrics of answers", unit="model", disable=not progress):
        found = measured(member)
        results = left(found, retrained, original, groups)
        metrics = {name: reading(result) for name, result in results.items()}
        yield member, OUTPUT, {"seconds": found.cost["seconds"], "metrics": metrics}


def _fields(world: World, paths: Mapping[str, str], own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an audit of a model of the pools."""
    rows = {f"{name}_dataset": str(world.path / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
    models = {
        "model_name_or_path": paths["model"],
        "original_model_name_or_path": paths[ORIGINAL],
        "retrained_model_name_or_path": paths[RETRAINED],
    }
    return {**rows, **models, "comparator": "retrained", "group_by": "person", "max_length": 128, **own}


def _about(member: Member, path: str) -> dict[str, Any]:
    return {"name": member.name, **vars(member), "seed": member.seed, "path": path, "results": {}}


def _differences(firsts: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[float]:
    """How far the headline of an audit moves with its own seeds, by model."""
    pairs = ([one["metrics"][HEADLINE]["score"] for one in pair] for pair in zip(firsts, others, strict=True))
    return [abs(a - b) for a, b in pairs if None not in (a, b)]
