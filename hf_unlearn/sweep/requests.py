# SPDX-License-Identifier: Apache-2.0
"""Requests to forget, one after another: each is a run, from the result of the one before it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.sets import QUESTIONS
from ..files import write_text
from ..runs.audits import run_audits
from ..runs.parser import split_config
from ..runs.prepare import Prepared, prepare
from ..runs.recipe import RUN_CONTROL, Recipe, read_recipe
from ..yaml_file import load_yaml
from .expand import Run, run_id


# What each request's run starts from.
LAST, ORIGINAL = "last", "original"
STARTS = (LAST, ORIGINAL)
ROWS = "rows"
# In a run's folder, its adapter in the weights: what the next request adds one of its own to.
MERGED = "merged"
# The chain decides these, or they would make the requests incomparable.
RESERVED = ("method", "model_name_or_path", "model_revision", "output_dir", "run_name", "audit", *RUN_CONTROL)
TEXTS = ("prompt", "completion", "messages", "text", "input_ids")


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        id (`str`): names its run and its rows in the report.
        fields (`dict`): of the recipe, what differs: which rows are forgotten.
    """

    id: str
    fields: dict[str, Any]


def read_requests(path: str | Path) -> list[Request]:
    """Requests in their order, from a YAML or JSON file: a list of `id` and fields of a recipe.

    Raises:
        `ValueError`: in one line, for what is no such list, an id that is missing, unusable or given twice, a field
            that the chain decides, and two requests that ask for the same.
    """
    path = Path(path)
    listed = load_yaml(path, f"--requests: no file at {str(path)!r}. Give a YAML or JSON list of requests.")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{path}: give a list of requests, each with `id` and fields such as `forget_dataset`.")
    found: dict[str, Request] = {}
    for number, one in enumerate(listed, start=1):
        where, name = f"{path}, request {number}", one.get("id")
        fields = {field: value for field, value in one.items() if field != "id"}
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name == "paraphrased":
            raise ValueError(f"{where}: id={name!r}; give a text of letters, digits, `_` and `-` that names its run.")
        if name in found:
            raise ValueError(f"{where}: the id {name!r} is an earlier request's. Give each its own.")
        if taken := [field for field in fields if field in RESERVED]:
            raise ValueError(f"{where}: {', '.join(taken)} cannot be given: it is the same, or set, for all requests.")
        if same := [other.id for other in found.values() if other.fields == fields]:
            raise ValueError(f"{where}: {name!r} and {same[0]!r} ask for the same. Give the rows of each.")
        found[name] = Request(name, fields)
    return list(found.values())


def plan_requests(
    content: Mapping[str, Any], path: str, argv: list[str], requests: list[Request], folder: Path, start: str
) -> tuple[list[Run], list[dict[str, Any]]]:
    """The runs of all requests, after everything about each was checked that can be refused before a model loads.

    The rows that a request forgets are written into `folder`, so that the runs of the others audit them too.

    Args:
        content (`Mapping`): the recipe's, whose file is `path`.
        argv (`list[str]`): of `hf-unlearn run`; its fields come first.
        folder (`Path`): of all runs.
        start (`str`): `last`, from the result of the request before; or `original`, each from the recipe's model, as
            for forget sets that grow.

    Returns:
        `tuple`: the runs in order, and of every request `id`, `rows` (how many it forgets) and `fields`.

    Raises:
        `ValueError`: in one line, as a run would, with the request that it is about.
    """
    if start not in STARTS:
        raise ValueError(f"--requests_from {start}; allowed: {', '.join(STARTS)}.")
    given = {word[2:].split("=")[0] for word in split_config(argv)[1] if word.startswith("--")}
    if taken := sorted(given & {*RUN_CONTROL, "run_name"}):
        raise ValueError(f"--{taken[0]} does not go with --requests: the same command goes on where it was stopped.")
    folders = [folder / f"{number:02d}-{request.id}" for number, request in enumerate(requests, start=1)]
    recipes, prepared = [], []
    for request, place in zip(requests, folders, strict=True):
        try:
            recipe = read_recipe({**content, **request.fields}, path, argv)
            recipe.training.output_dir, recipe.training.run_name = str(place), place.name
            prepared.append(_checked(recipe, start))
        except ValueError as error:
            raise ValueError(f"request {request.id!r}: {error}") from error
        recipes.append(recipe)
    if start == LAST:
        _check_kept(requests, recipes, prepared)
    files = {}
    if start == LAST:
        for request, one in zip(requests, prepared, strict=True):
            files[request.id] = folder / ROWS / f"{request.id}.jsonl"
            rows = [json.dumps(row, ensure_ascii=False) for row in one.sets.audited["forget"]]
            write_text(files[request.id], "\n".join(rows) + "\n")
    runs = [_run(number, requests, recipe, folders, files, start, path) for number, recipe in enumerate(recipes)]
    about = [
        {"id": request.id, "rows": len(one.sets.forget), "fields": request.fields}
        for request, one in zip(requests, prepared, strict=True)
    ]
    return runs, about


def set_name(requests: list[str], other: str, number: int) -> str:
    """What the run of request `number` calls the rows of another: forgotten before, or not asked for yet."""
    return f"{'forget' if requests.index(other) < number else 'holdout'}_{other}"


def _checked(recipe: Recipe, start: str) -> Prepared:
    """What a request's run will find, but for the model that it starts from."""
    if not recipe.run.audit:
        raise ValueError("`audit: false`, and requests are followed by audits. Leave it out.")
    if start == LAST and recipe.run.method == "retrain":
        raise ValueError("method='retrain' starts from untrained weights, not from the last result. Take another.")
    # Whether the folder holds this very run is looked at when all are known.
    recipe.run = replace(recipe.run, overwrite_output=True)
    prepared = prepare(recipe)
    run_audits(recipe)
    if start == LAST and prepared.sets.suite not in QUESTIONS:
        raise ValueError(
            f"requests are followed by questions or texts, and {recipe.run.benchmark!r} has an audit of its own. "
            f"`--requests_from {ORIGINAL}` makes each from the original model."
        )
    return prepared


def _check_kept(requests: list[Request], recipes: list[Recipe], prepared: list[Prepared]) -> None:
    """Refuses a request whose retain rows would teach again what it, or one before it, is to forget."""
    gone: dict[str, str] = {}
    for request, recipe, one in zip(requests, recipes, prepared, strict=True):
        gone |= dict.fromkeys(_rows(one.sets.forget), request.id)
        if one.sets.retain is None or "retain" not in recipe.trainer_class().trained_roles_of(recipe.training):
            continue
        taught = [gone[row] for row in _rows(one.sets.retain) if row in gone]
        if taught:
            raise ValueError(
                f"request {request.id!r}: {len(taught)} of its retain rows are forget rows of {taught[0]!r}, which "
                "training on them would bring back. Leave them out of the retain rows."
            )


def _rows(rows) -> list[str]:
    columns = [name for name in TEXTS if name in rows.column_names]
    return [json.dumps(row, sort_keys=True) for row in rows.select_columns(columns)]


def _run(
    number: int,
    requests: list[Request],
    recipe: Recipe,
    folders: list[Path],
    files: dict[str, Path],
    start: str,
    path: str,
) -> Run:
    resolved, ids = recipe.resolved(), [request.id for request in requests]
    content = {name: resolved[name] for name in ("method", *recipe.given) if name not in RUN_CONTROL}
    content |= {} if recipe.env is None else {"env": recipe.env}
    content |= {"output_dir": str(folders[number]), "run_name": folders[number].name}
    others = {set_name(ids, other, number): str(file) for other, file in files.items() if other != ids[number]}
    if others:
        content["audited_sets"] = {**(recipe.run.audited_sets or {}), **others}
    if number and start == LAST:
        content = _from_result(content, folders[number - 1], recipe.model.use_peft)
    known = read_recipe(content, path)
    return Run(
        name=folders[number].name,
        id=run_id(known.resolved()),
        label=recipe.run.method,
        recipe=path,
        method=recipe.run.method,
        setting=requests[number].fields,
        tags=[],
        seed=recipe.training.seed,
        tuning=False,
        target=ids[number],
        folder=folders[number],
        content=content,
        resolved=known.resolved(),
    )


def _from_result(content: dict[str, Any], result: Path, adapter: bool) -> dict[str, Any]:
    """A recipe that goes on with what a run made."""
    left = {name: value for name, value in content.items() if name != "model_revision"}
    if init := left.get("model_init_kwargs"):
        left["model_init_kwargs"] = {name: value for name, value in init.items() if name != "revision"} or None
    return left | {"model_name_or_path": str(result / MERGED if adapter else result)}
