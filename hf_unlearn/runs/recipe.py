# SPDX-License-Identifier: Apache-2.0
"""Recipes: strict YAML and command-line fields, parsed before anything is loaded."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml
from trl import ModelConfig

from ..data.qa import QAFormat
from ..files import write_text
from ..hub.card import card_settings
from ..methods import METHODS
from .arguments import RunArguments
from .methods_named import check_method_of_file, method_of
from .parser import StrictParser, read_yaml, split_config


RECIPE_FILE = "recipe.yaml"
# Whether a run goes on, not what it does; and what is nobody else's business.
RUN_CONTROL = ("resume_from_checkpoint", "overwrite_output", "hub_token")


@dataclass
class Recipe:
    """Everything a run was told."""

    run: RunArguments
    qa: QAFormat
    training: object
    model: ModelConfig
    given: tuple[str, ...]
    model_init_kwargs: dict | None
    env: dict | None = None

    def trainer_class(self) -> type:
        return METHODS[self.run.method][1]

    def resolved(self) -> dict:
        """Every field that was given, and every setting that decides the result; enough to start the run again."""
        parts = (self.run, self.model, self.qa, self.training)
        values = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
        values |= {"model_init_kwargs": self.model_init_kwargs, "env": self.env}
        named = {name: values[name] for name in ("method", *self.given, "output_dir") if name not in RUN_CONTROL}
        return {name: _plain(value) for name, value in {**named, **card_settings(self.training)}.items()}

    def write(self, folder: Path) -> None:
        """Writes `recipe.yaml`, from which the run can be started again."""
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)
        write_text(folder / RECIPE_FILE, text)


def parse_recipe(argv: list[str] | None = None) -> Recipe:
    """Reads a recipe from `[--config FILE] [--field value ...]`.

    Raises:
        `ValueError`: for an unknown method or field, a wrong type or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    path, _ = split_config(argv)
    return read_recipe({} if path is None else read_yaml(path), path, argv)


def read_recipe(content: dict, path: str | None, argv: list[str] | None = None) -> Recipe:
    """Reads a recipe that a file holds.

    Args:
        content (`dict`): the file's, which is called `path` in messages.
        path (`str`, *optional*): of the file.
        argv (`list[str]`, *optional*): `[--config FILE] [--field value ...]`; what it says comes first.

    Raises:
        `ValueError`: as `parse_recipe`.
    """
    words = [] if argv is None else split_config(argv)[1]
    method = method_of(content, words)
    parser = StrictParser((RunArguments, QAFormat, METHODS[method][0], ModelConfig), prog="hf-unlearn run")
    check_method_of_file(content, method, path)
    if argv is None:
        (run, qa, training, model), given = parser.read(content, str(path)), tuple(content)
    else:
        (run, qa, training, model), given = parser.parse(argv, content)
    if model.model_name_or_path is None:
        raise ValueError("No model is named. Give `model_name_or_path`: a folder or a Hub id.")
    if training.output_dir == "trainer_output":
        name = Path(model.model_name_or_path).resolve().name
        training.output_dir = f"runs/{run.benchmark or 'own'}/{name}-{method}"
    # A benchmark's retain rows are there to be asked about; those that are named are there to be trained on.
    training = training.settled(retain_rows=run.retain_dataset is not None)
    recipe = Recipe(run, qa, training, model, given, training.model_init_kwargs, content.get("env"))
    training.model_init_kwargs = _loading(training.model_init_kwargs or {}, model, given)
    return recipe


def _loading(named: dict, model: ModelConfig, given: tuple[str, ...]) -> dict:
    """Arguments of `from_pretrained`, from `model_init_kwargs` and from the fields that have names of their own.

    Raises:
        `ValueError`: if both say something, and not the same.
    """
    fields_of = {"dtype": "dtype", "revision": "model_revision", "attn_implementation": "attn_implementation"}
    own = _model_kwargs(model)
    for name, value in named.items():
        field = fields_of.get(name)
        if field in given and own.get(name) != value:
            raise ValueError(f"{field}={own.get(name)!r} and model_init_kwargs' {name}={value!r} differ. Give one.")
    return {**own, **named}


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
