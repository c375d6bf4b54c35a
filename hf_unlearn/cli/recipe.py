# SPDX-License-Identifier: Apache-2.0
"""Recipes: strict YAML and command-line fields, parsed before anything is loaded."""

import sys
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import yaml
from trl import ModelConfig, TrlParser

from ..card import card_settings
from ..data.qa import QAFormat
from ..methods import METHODS
from .arguments import RunArguments


RECIPE_FILE = "recipe.yaml"


class StrictParser(TrlParser):
    """[`~trl.TrlParser`] that names the nearest valid key, and reports a mistake in one line instead of all usage."""

    def error(self, message: str):
        raise ValueError(f"{message}. `--help` lists every field with its type.")

    def parse(self, argv: list[str]) -> tuple:
        """Parses `[--config FILE] [--field value ...]`; returns one instance of each dataclass."""
        known = {action.dest for action in self._actions} | {"config", "env"}
        self._check_names(_yaml_of(argv), known, "in the recipe")
        self._check_names(_flags(argv), known | {"help"} | {option[2:] for option in self._option_string_actions}, "on the command line")
        return self.parse_args_and_config(argv)

    @staticmethod
    def _check_names(names, known: set[str], where: str) -> None:
        for name in names:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else "`--help` lists every field."
                raise ValueError(f"Unknown field {name!r} {where}. {hint}")


@dataclass
class Recipe:
    """Everything a run was told."""

    run: RunArguments
    qa: QAFormat
    training: object
    model: ModelConfig
    given: tuple[str, ...]
    model_init_kwargs: dict | None

    def trainer_class(self) -> type:
        return METHODS[self.run.method][1]

    def resolved(self) -> dict:
        """Every field that was given, and every setting that decides the result; enough to start the run again."""
        parts = (self.run, self.model, self.qa, self.training)
        values = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
        values["model_init_kwargs"] = self.model_init_kwargs
        named = {name: values[name] for name in ("method", *self.given, "output_dir") if name in values}
        return {name: _plain(value) for name, value in {**named, **card_settings(self.training)}.items()}

    def write(self, folder: Path) -> None:
        """Writes `recipe.yaml`, from which the run can be started again."""
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)
        (folder / RECIPE_FILE).write_text(text, encoding="utf-8")


def parse_recipe(argv: list[str] | None = None) -> Recipe:
    """Reads a recipe from `[--config FILE] [--field value ...]`.

    Raises:
        `ValueError`: for an unknown method or field, a wrong type or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    method = _method_of(argv)
    config = METHODS[method][0]
    run, qa, training, model = StrictParser((RunArguments, QAFormat, config, ModelConfig), prog="hf-unlearn run").parse(
        argv
    )
    if model.model_name_or_path is None:
        raise ValueError("No model is named. Give `model_name_or_path`: a folder or a Hub id.")
    if training.output_dir == "trainer_output":
        name = Path(model.model_name_or_path).name
        training.output_dir = f"runs/{run.benchmark or 'own'}/{name}-{method}"
    given = tuple(dict.fromkeys([*_yaml_of(argv), *_flags(argv)]))
    recipe = Recipe(run, qa, training, model, given, training.model_init_kwargs)
    training.model_init_kwargs = {**(training.model_init_kwargs or {}), **_model_kwargs(model)}
    return recipe


def _method_of(argv: list[str]) -> str:
    """The method decides which config the rest is parsed with, so it is read first."""
    named = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--method"]
    named += [word.split("=", 1)[1] for word in argv if word.startswith("--method=")]
    method = named[-1] if named else _yaml_of(argv).get("method")
    if method is None and ("--help" in argv or "-h" in argv):
        return next(iter(METHODS))
    if method not in METHODS:
        near = get_close_matches(str(method), METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method={method!r}; allowed: {', '.join(METHODS)}.{hint}")
    return method


def _flags(argv: list[str]) -> list[str]:
    return [word[2:].split("=")[0] for word in argv if word.startswith("--")]


def _yaml_of(argv: list[str]) -> dict:
    if "--config" not in argv:
        return {}
    position = argv.index("--config") + 1
    if position == len(argv):
        raise ValueError("`--config` names no file.")
    path = Path(argv[position])
    if not path.is_file():
        raise ValueError(f"No recipe at {str(path)!r}. `ls recipes` in a clone of the repository shows what is there.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `field: value` lines.")
    return content


def _model_kwargs(model: ModelConfig) -> dict:
    given = {
        "dtype": model.dtype,
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
    }
    return {key: value for key, value in given.items() if value is not None}


def _plain(value):
    value = getattr(value, "value", value)
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
