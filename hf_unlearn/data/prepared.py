# SPDX-License-Identifier: Apache-2.0
"""Models of benchmarks that `hf-unlearn prepare` made, by name: `<benchmark>/<name>/target` and `.../retrained`."""

from pathlib import Path

from ..cache import cache_root
from ..files import read_json, write_json


FOLDER = "prepared"


class NotPreparedError(ValueError):
    """A model of `prepare` is named that it did not make."""


def prepared_file(benchmark: str, name: str) -> Path:
    """Where it is kept which folders hold the models of this name."""
    return cache_root() / FOLDER / benchmark / f"{name}.json"


def write_prepared(benchmark: str, name: str, folders: dict[str, str], **about) -> None:
    """Names folders of models; those that were named before stay."""
    file = prepared_file(benchmark, name)
    known = read_json(file)["models"] if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**about, "models": {**known, **folders}}, indent=1)


def prepared_model(name: str) -> str:
    """The folder of a prepared model; any other name as it is.

    Raises:
        [`NotPreparedError`]: for the name of one that was not made.
    """
    parts = name.split("/")
    if len(parts) != 3 or not parts[2].startswith(("target", "retrained")) or Path(name).exists():
        return name
    if name.startswith((".", "/", "~")):
        return name
    benchmark, base, kind = parts
    file = prepared_file(benchmark, base)
    models = read_json(file)["models"] if file.is_file() else {}
    if kind not in models or not Path(models[kind]).is_dir():
        made = f" Made so far: {', '.join(models)}." if models else ""
        raise NotPreparedError(
            f"{name!r} is not there.{made} Make it with `hf-unlearn prepare {benchmark} --model_name_or_path BASE "
            f"--name {base}`, or name a folder or a Hub id."
        )
    return models[kind]
