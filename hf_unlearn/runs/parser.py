# SPDX-License-Identifier: Apache-2.0
"""Strict reading of a YAML file and command-line fields: what is misspelt or of a wrong type is an error."""

import os
from argparse import Action, ArgumentTypeError, HelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from trl import TrlParser

from ..yaml_file import load_yaml
from .help import Fields


_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "null": "TEXT", "string_to_bool": "BOOL", "dict": "FIELDS"}


class StrictParser(TrlParser):
    """[`~trl.TrlParser`] that takes no field it does not know, checks the file's values as strictly as the command
    line's, and reports a mistake in one line instead of all usage.

    `--field null` unsets a field that may be absent, such as the `benchmark` of a shipped recipe.
    """

    def __init__(self, dataclass_types: Iterable[type], prog: str):
        usage = f"{prog} [--config FILE] [--field value ...]"
        super().__init__(dataclass_types, prog=prog, usage=usage, formatter_class=Fields)
        self.hints = {name: hint for part in self.dataclass_types for name, hint in get_type_hints(part).items()}
        for action in self._actions:
            if action.type is str and NoneType in _kinds(self.hints[action.dest]):
                action.type = _text_or_null
            _explain(action, self._get_formatter())

    def error(self, message: str):
        raise ValueError(f"{message}. `--help` lists every field with its type.")

    def parse(self, argv: list[str], content: dict[str, Any] | None = None) -> tuple[tuple, tuple[str, ...]]:
        """Parses `[--config FILE] [--field value ...]`.

        Args:
            argv (`list[str]`): the words; what fields they give come first.
            content (`dict`, *optional*): stands in for what the file holds.

        Returns:
            `tuple`: one instance of each dataclass, and the names of the fields that were given.

        Raises:
            `ValueError`: for an unknown field, a wrong type, or what a dataclass itself refuses.
        """
        options = {o[2:]: action.dest for o, action in self._option_string_actions.items() if o.startswith("--")}
        flags = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
        path, words = split_config(argv)
        if content is None:
            content = {} if path is None else read_yaml(path)
        check_names(flags, {*options, "config"}, "on the command line")
        parts = self.read(content, str(path), words)
        return parts, tuple(dict.fromkeys([*content, *(options[f] for f in flags if f != "config")]))

    def read(self, content: Mapping[str, Any], where: str, words: Sequence[str] = ()) -> tuple:
        """Fields as a file holds them, and words of a command line, which come first.

        Args:
            content (`dict`): field to value.
            where (`str`): what holds them, for messages.
            words (`Sequence[str]`): `[--field value ...]`.

        Returns:
            `tuple`: one instance of each dataclass.

        Raises:
            `ValueError`: as `parse`.
        """
        fields = {name: value for name, value in content.items() if name != "env"}
        check_names(fields, {action.dest for action in self._actions} - {"help"}, f"in {where}")
        for name, value in self._env_of(content).items():
            os.environ[name] = value
        self.set_defaults_with_config(**{name: self._checked(name, value) for name, value in fields.items()})
        try:
            *parts, left_over = self.parse_args_into_dataclasses(
                words, return_remaining_strings=True, look_for_args_file=False
            )
        except ValueError as error:
            # Raised here again, so that what another library refuses is told in one line too.
            raise ValueError(" ".join(str(error).split())) from error
        if left_over:
            raise ValueError(f"{' '.join(left_over)!r} belongs to no field. Write `--field value`.")
        return tuple(parts)

    def _checked(self, name: str, value: Any) -> Any:
        """A value of the file, converted as the command line would."""
        action = next(action for action in self._actions if action.dest == name)
        kinds = _kinds(self.hints[name])
        if isinstance(value, (dict, list)) or value is None:
            if isinstance(value, list) and list in kinds and action.type in (int, float):
                return [self._number(name, action.type, one) for one in value]
            if type(value) in kinds or (value is None and action.default is None):
                return value
            raise ValueError(f"{name}: {value!r} in the recipe is of a wrong type. `--help` lists every field's.")
        try:
            converted = action.type(str(value))
        except (ValueError, TypeError, ArgumentTypeError):
            wanted = action.type.__name__.replace("string_to_bool", "`true` or `false`")
            raise ValueError(f"{name}: {value!r} in the recipe is no {wanted}.") from None
        allowed = action.choices
        if allowed is not None and converted not in allowed:
            raise ValueError(f"{name}: {value!r} in the recipe; allowed: {', '.join(map(repr, allowed))}.")
        # One value of a field that takes several, as on the command line: a text is not its letters.
        return [converted] if list in kinds and str not in kinds else converted

    @staticmethod
    def _number(name: str, kind: type, value: Any) -> int | float:
        try:
            return kind(str(value))
        except ValueError:
            raise ValueError(f"{name}: {value!r} in the recipe is no {kind.__name__}.") from None

    @staticmethod
    def _env_of(content: Mapping) -> dict[str, str]:
        env = content.get("env", {})
        if not isinstance(env, dict):
            raise ValueError(f"env: {env!r} in the recipe; give `NAME: value` lines.")
        return {str(name): str(value) for name, value in env.items()}


def _explain(action: Action, formatter: HelpFormatter) -> None:
    """Gives a field's help its choices, which names one by one would not fit a line, and takes `%` as it is."""
    if action.choices is not None:
        action.help = f"{action.help or ''} One of: {', '.join(map(str, action.choices))}.".strip()
    if action.option_strings and action.nargs != 0:
        kind = "null" if action.type is _text_or_null else getattr(action.type, "__name__", "value")
        action.metavar = _METAVARS.get(kind, "VALUE")
    try:
        formatter._expand_help(action)
    except (KeyError, TypeError, ValueError):
        action.help = action.help.replace("%", "%%")


def check_names(names: Iterable[Any], known: set[str], where: str) -> None:
    """Refuses names that are not known; says which one is near."""
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "`--help` lists every field."
            raise ValueError(f"Unknown field {name!r} {where}. {hint}")


def split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The file named by `--config FILE` or `--config=FILE`, and the other words."""
    words = list(argv)
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ValueError("`--config` names no file.")
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith("--config="):
            return word.removeprefix("--config="), words[:i] + words[i + 1 :]
    return None, words


BASE = "base"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The `field: value` lines of a file, and those of the file beside it that `base` names, where it has no own.

    Raises:
        `ValueError`: if there is no such file, or it holds something else.
    """
    path = Path(path)
    missing = f"No recipe at {str(path)!r}. `ls recipes` in a clone of the repository shows what is there."
    content = _lines(path, missing)
    name = content.pop(BASE, None)
    if name is None:
        return content
    if not isinstance(name, str):
        raise ValueError(f"{path}: {BASE}: {name!r}; give the name of a file whose fields are taken over.")
    file = path.parent / name
    shared = _lines(file, f"{path}: {BASE}: no file at {str(file)!r}; it is looked for beside the recipe.")
    if BASE in shared:
        raise ValueError(f"{path}: {BASE}: {file} has a `{BASE}` itself. Name one file, with all that is shared.")
    return shared | content


def _lines(path: Path, missing: str) -> dict[str, Any]:
    content = load_yaml(path, missing)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `field: value` lines.")
    return content


def _kinds(hint: Any) -> set[type]:
    """The plain types that a hint allows: `{list, NoneType}` for `list[str] | None`."""
    if isinstance(hint, type) and not get_args(hint):
        return {str if issubclass(hint, Enum) else hint}
    origin = getattr(hint, "__origin__", None)
    if isinstance(origin, type):
        return {origin}
    return {kind for part in get_args(hint) for kind in _kinds(part)}


def _text_or_null(word: str) -> str | None:
    return None if word == "null" else word
