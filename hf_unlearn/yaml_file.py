# SPDX-License-Identifier: Apache-2.0
"""Files and texts of settings, read with one clear error each."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which the last would count, and takes `1e-3` for a number, as YAML 1.2
    does."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(path: Path, missing: str) -> Any:
    """What a YAML file holds.

    Args:
        path (`Path`): the file.
        missing (`str`): what to say where there is none.

    Raises:
        `ValueError`: if there is no such file, or it is no YAML.
    """
    if not path.is_file():
        raise ValueError(missing)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None


def read_fields(name: str, value: Any, example: str) -> dict[str, Any] | None:
    """Fields as a recipe (a mapping) or the command line (its text) gives them.

    Args:
        name (`str`): of the setting.
        value (`Any`): as given.
        example (`str`): of what it may be, for messages.

    Raises:
        `ValueError`: if they are none.
    """
    try:
        fields = yaml.load(value, StrictLoader) if isinstance(value, str) else value
    except yaml.YAMLError:
        fields = value
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"{name}={value!r}; give fields, such as `{example}`.")
    return fields


def read_words(words: list[str]) -> dict[str, Any]:
    """Fields as words of a command line: `--name value`, or `--name value value` for a list.

    Raises:
        `ValueError`: for a word before the first name, a name without a value, or one that is given twice.
    """
    fields: dict[str, Any] = {}
    starts = [i for i, word in enumerate(words) if re.match("--[a-zA-Z_]", word)]
    if words and starts[:1] != [0]:
        raise ValueError(f"{words[0]!r} belongs to no field. Give fields as `--name value`.")
    for start, end in pairwise([*starts, len(words)]):
        name, equals, first = words[start][2:].partition("=")
        texts = [*([first] if equals else []), *words[start + 1 : end]]
        if not texts or name in fields:
            raise ValueError(f"--{name}: {'given twice' if texts else 'no value is given'}. Give `--{name} VALUE`.")
        values = [_value(text) for text in texts]
        fields[name] = values[0] if len(values) == 1 else values
    return fields


def _value(text: str) -> Any:
    try:
        return yaml.load(text, StrictLoader)
    except yaml.YAMLError:
        return text
