# SPDX-License-Identifier: Apache-2.0
"""The run directory: never another run's, and found again on resume."""

import os
from pathlib import Path

import yaml

from .recipe import RECIPE_FILE, Recipe


# Whether and where a run goes on, not what it does.
_RUN_CONTROL = ("resume_from_checkpoint", "overwrite_output", "output_dir")


def check_output(recipe: Recipe) -> None:
    """Refuses an `output_dir` that holds another run, this run already, or files that are no run's."""
    folder = Path(recipe.training.output_dir)
    # The first process may have begun to write while the others still check.
    first = int(os.environ.get("RANK", 0)) == 0
    if first and not recipe.run.overwrite_output and folder.exists() and any(folder.iterdir()):
        _check_own(folder, recipe, recipe.training.resume_from_checkpoint is not None)


def begin_output(recipe: Recipe) -> None:
    """Writes `recipe.yaml`; called when nothing is left to be refused."""
    folder = Path(recipe.training.output_dir)
    if recipe.training.resume_from_checkpoint is None:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    recipe.write(folder)


def _check_own(folder: Path, recipe: Recipe, resumes: bool) -> None:
    way_out = "Give another `output_dir`, or `overwrite_output: true` to write over it."
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"output_dir={str(folder)!r} holds files that are no run's. {way_out}")
    held = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    differs = sorted(key for key in {*held, *recipe.resolved()} if held.get(key) != recipe.resolved().get(key))
    differs = [key for key in differs if key not in _RUN_CONTROL]
    if differs:
        raise ValueError(
            f"output_dir={str(folder)!r} holds another run, which differs in {', '.join(differs)}. {way_out}"
        )
    if not resumes:
        raise ValueError(
            f"output_dir={str(folder)!r} holds this run already. `resume_from_checkpoint: last` goes on with it. {way_out}"
        )


def resume_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint folder to go on from; `last` stands for the newest in `output_dir`.

    Raises:
        `ValueError`: if there is none.
    """
    from transformers.trainer_utils import get_last_checkpoint

    asked, folder = recipe.training.resume_from_checkpoint, recipe.training.output_dir
    if asked is None:
        return None
    found = get_last_checkpoint(folder) if asked == "last" else asked
    if found is None or not Path(found).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={asked!r}: no checkpoint there ({folder}). Checkpoints are written with "
            "`save_strategy: steps` or `epoch`."
        )
    return found
