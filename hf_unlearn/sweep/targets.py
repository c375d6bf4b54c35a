# SPDX-License-Identifier: Apache-2.0
"""Targets: what is to be forgotten, one after another, with the same recipes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


PLACE = re.compile(r"\{(\w+)\}")
# What a recipe says of its own concept is no other target's.
CONCEPT_FIELDS = {"concept": "name", "concept_aliases": "aliases", "concept_descriptions": "descriptions"}


def read_targets(given: Any, folders: list[Path]) -> list[dict[str, Any]]:
    """Targets in their order, each with `id` and `name` at least; a field that only others have is `None`.

    Args:
        given (`str` or `list[dict]`):
            The targets, or a `.yaml`, `.json` or `.jsonl` file that lists them.
        folders (`list[Path]`):
            Where the file is looked for.

    Raises:
        `ValueError`: if there are none, two share an id, or an id cannot name a folder.
    """
    rows, where = (given, "targets") if isinstance(given, list) else _read(str(given), folders)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{where}: give a list of targets, each with `id`, `name` and what else recipes ask for.")
    targets: dict[str, dict] = {}
    for number, row in enumerate(rows, start=1):
        one = _checked(row, f"{where}, target {number}")
        if one["id"] in targets:
            raise ValueError(f"{where}: two targets have the id {one['id']!r}. An id names the runs of one target.")
        targets[one["id"]] = one
    # A field that others have is this one's too, and has no value.
    fields = dict.fromkeys(field for one in targets.values() for field in one)
    return [fields | one for one in targets.values()]


def _read(name: str, folders: list[Path]) -> tuple[Any, str]:
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"targets: no file {name!r} in {' or '.join(map(repr, map(str, folders)))}.")
    if path.suffix not in (".yaml", ".yml", ".json", ".jsonl"):
        raise ValueError(f"targets: {str(path)!r} is no .yaml, .json or .jsonl file.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()], str(path)
        return (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)), str(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"targets: {path} cannot be read: {' '.join(str(error).split())}") from None


def _checked(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = row.get("id")
    if not isinstance(name, (str, int)) or isinstance(name, bool) or not str(name).strip():
        raise ValueError(f"{where}: id={name!r}. Give each target an `id`: a short text that names its runs.")
    name = str(name)
    if re.search(r"[,/\\\s]", name) or name in (".", ".."):
        raise ValueError(
            f"{where}: id={name!r} holds a comma, a path separator or a space. It becomes a folder's name and a cell "
            "of a table: leave them out (the `name` may hold them)."
        )
    if "name" in row and not isinstance(row["name"], str):
        raise ValueError(f"{where}: name={row['name']!r}; give a text.")
    for key in ("aliases", "descriptions"):
        texts = row.get(key)
        if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise ValueError(f"{where}: {key}={texts!r}; give a list of texts.")
    return {"name": name, **row, "id": name}


def fill_in(content: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for one target: `{id}`, `{name}` and its other fields filled in, and its concept fields set.

    What stands in braces and is no field of any target stays as it is.

    Args:
        content (`Mapping`): the recipe's fields.
        target (`Mapping`): of [`read_targets`].

    Raises:
        `ValueError`: for a field that other targets have and this one has not, or a list within a text.
    """
    content = dict(content)
    if "concept" in content and not _has_place(content["concept"], target):
        for field, source in CONCEPT_FIELDS.items():
            content.pop(field, None)
            if target.get(source):
                content[field] = [target[source]] if source == "name" else list(target[source])
    return {field: _filled(value, target, field) for field, value in content.items()}


def _filled(value: Any, target: Mapping[str, Any], field: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, target, field) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, target, field) for item in value]
    if not isinstance(value, str):
        return value
    for name in PLACE.findall(value):
        if name in target and target[name] is None:
            raise ValueError(f"{field}: {value!r}, and target {target['id']!r} has no {name!r}, as others have.")
    whole = PLACE.fullmatch(value)
    if whole and whole[1] in target:
        return target[whole[1]]
    for name in PLACE.findall(value):
        if isinstance(target.get(name), (list, dict)):
            raise ValueError(
                f"{field}: {value!r} has `{{{name}}}` within a text, and the target's {name!r} is a list. Let it "
                "stand alone, or give a text."
            )
    return PLACE.sub(lambda match: str(target.get(match[1], match[0])), value)


def _has_place(value: Any, target: Mapping[str, Any]) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(name in target for text in texts for name in PLACE.findall(str(text)))
