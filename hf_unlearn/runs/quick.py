# SPDX-License-Identifier: Apache-2.0
"""What a recipe's file and the command line show by themselves, told before torch and transformers are imported.

`parse_recipe` finds the same, seconds later, and decides; here is only what is certain from names and words.
"""

from pathlib import Path

from ..methods import METHODS
from ..models.checkpoint_paths import check_model_path
from .arguments import RunArguments
from .field_names import fields_of
from .methods_named import check_method_of_file, method_of
from .parser import check_names, read_yaml, split_config


# Options that are no field's name.
OTHER_OPTIONS = ("config", "help", "suite")
_NUMBERS = {"int": int, "float": float}


def check_recipe(argv: list[str]) -> None:
    """Refuses a recipe whose file or words cannot be meant.

    Args:
        argv (`list[str]`): `[--config FILE] [--field value ...]`, without the options of a launch.

    Raises:
        `ValueError`
    """
    path, words = split_config(argv)
    content = {} if path is None else read_yaml(path)
    method = method_of(content, words)
    if {"--help", "-h"} & set(words):
        return
    check_method_of_file(content, method, path)
    kinds = recipe_fields(method)
    if not kinds:
        # An installation without sources.
        return
    fields = {name: value for name, value in content.items() if name != "env"}
    check_names(fields, {*kinds}, f"in {path}")
    flags = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    negated = {f"no_{name}" for name, kind in kinds.items() if "bool" in kind}
    check_names(flags, {*kinds, *OTHER_OPTIONS, *negated}, "on the command line")
    for name, value in fields.items():
        _check_number(name, value, kinds[name])
    if not words:
        RunArguments(**{name: value for name, value in fields.items() if name in RunArguments.__dataclass_fields__})
    model = content.get("model_name_or_path")
    # Models of the embedded worlds have such names too, and are made when they are first asked for.
    local = isinstance(model, str) and (Path(model).is_dir() or model.startswith((".", "/", "~")))
    if local and "model_name_or_path" not in flags:
        check_model_path(model, content.get("model_init_kwargs"))


def recipe_fields(method: str) -> dict[str, str]:
    """Every field of a recipe of this method, with its annotation; none where a source cannot be read."""
    module, config = METHODS.where(method)
    parts = [
        fields_of("hf_unlearn.runs.arguments", "RunArguments"),
        fields_of("hf_unlearn.data.qa", "QAFormat"),
        fields_of(module, config),
        fields_of("trl", "ModelConfig"),
    ]
    return {name: kind for part in parts for name, kind in part.items()} if all(parts) else {}


def _check_number(name: str, value, kind: str) -> None:
    convert = _NUMBERS.get(kind)
    if convert is None or isinstance(value, (dict, list)) or value is None:
        return
    try:
        convert(str(value))
    except ValueError:
        raise ValueError(f"{name}: {value!r} in the recipe is no {kind}.") from None
