# SPDX-License-Identifier: Apache-2.0
"""The run directory: never another run's, and found again on resume."""

import os
import shutil
from pathlib import Path

from ..audit.registry import AUDITS
from ..files import PART
from ..training.checkpoints import check_whole, last_whole
from .parser import read_yaml
from .recipe import RECIPE_FILE, Recipe


# Left behind by another run, these would be taken for this one's: an adapter beside full weights, a later checkpoint.
_MADE = (
    *("checkpoint-*", "*.safetensors", "*.safetensors.index.json", "*config.json"),
    *("metrics.jsonl", "audit", *AUDITS, "align_head", "gates.*"),
)
# What there is only once a run has begun to train.
_TRAINED = ("checkpoint-*", "*.safetensors", "metrics.jsonl")
# As Trainer's `train(resume_from_checkpoint=True)`; YAML's `true` comes as a word.
_LAST = ("last", "true")


def check_output(recipe: Recipe) -> None:
    """Refuses an `output_dir` that holds another run, what this run already made, or files that are no run's."""
    folder = Path(recipe.training.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={str(folder)!r} is a file. Give a folder's name.")
    models = (recipe.model.model_name_or_path, recipe.run.retrained_model_name_or_path)
    for model in (Path(name).resolve() for name in models if name is not None and Path(name).is_dir()):
        if folder.resolve() in (model, model.parent):
            raise ValueError(f"output_dir={str(folder)!r} holds the model {str(model)!r}. Give another `output_dir`.")
    # The first process may have begun to write while the others still check.
    first = int(os.environ.get("RANK", "0")) == 0
    # Of a run that was killed as it wrote its first file there is a part.
    held = [path for path in folder.iterdir() if path.suffix != PART] if folder.exists() else []
    if first and not recipe.run.overwrite_output and held:
        _check_own(folder, recipe)


def begin_output(recipe: Recipe) -> None:
    """Writes `recipe.yaml` and takes away what an earlier run made; called when nothing is left to be refused."""
    folder = Path(recipe.training.output_dir)
    for part in folder.glob(f"**/*{PART}"):
        # A killed run's.
        part.unlink()
    if _asked(recipe) is None and (folder / RECIPE_FILE).is_file():
        for path in (path for pattern in _MADE for path in folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    recipe.write(folder)


def _check_own(folder: Path, recipe: Recipe) -> None:
    way_out = "Give another `output_dir`, or `overwrite_output: true` to write over it."
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"output_dir={str(folder)!r} holds files that are no run's. {way_out}")
    if not any(path for pattern in _TRAINED for path in folder.glob(pattern)):
        # A run that broke off before its first step left nothing to lose.
        return
    held, asked = read_yaml(folder / RECIPE_FILE), recipe.resolved()
    differs = sorted(key for key in {*held, *asked} - {"output_dir"} if held.get(key) != asked.get(key))
    if differs:
        raise ValueError(
            f"output_dir={str(folder)!r} holds another run, which differs in {', '.join(differs)}. {way_out}"
        )
    made = [*folder.glob("checkpoint-*"), *folder.glob("*.safetensors")]
    if made and _asked(recipe) is None:
        raise ValueError(
            f"output_dir={str(folder)!r} holds this run already. `resume_from_checkpoint: last` goes on with it. "
            f"{way_out}"
        )


def resume_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint folder to go on from; `last` or `true` stands for the last whole one in `output_dir`.

    Raises:
        `ValueError`: if there is none, or the one that is named is not whole.
    """
    asked, folder = _asked(recipe), recipe.training.output_dir
    if asked is None:
        return None
    found = last_whole(folder) if asked.lower() in _LAST else asked
    if found is None and (Path(folder) / "report.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint={asked!r}: the run in {folder} has ended, with its report. `overwrite_output: "
            "true` starts anew."
        )
    if found is None or not Path(found).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={asked!r}: no checkpoint there ({folder}) that is whole. Checkpoints are written "
            "with `save_strategy: steps` or `epoch`. `overwrite_output: true` starts anew."
        )
    check_whole(found)
    return found


def _asked(recipe: Recipe) -> str | None:
    """What `resume_from_checkpoint` says; `false` is nothing, as for Trainer."""
    asked = recipe.training.resume_from_checkpoint
    return None if asked is None or asked.lower() == "false" else asked
