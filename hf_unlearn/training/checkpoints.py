# SPDX-License-Identifier: Apache-2.0
"""Checkpoints to resume from: whole ones only.

Trainer writes a checkpoint's files straight into `checkpoint-<step>`, so a run that is killed meanwhile leaves what
looks like a checkpoint. Here a file written last, `complete.json`, lists all others with their sizes: a folder whose
files are not as listed is never resumed from, and older checkpoints go only when a newer one is whole.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import read_json, write_json
from .method_state import write_method_state
from .same_run import check_same_run, run_facts


COMPLETE = "complete.json"


def is_whole(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end and nothing of it has gone since."""
    folder = Path(folder)
    try:
        files = _facts(folder)["files"]
        sizes = {name: (folder / name).stat().st_size for name in files}
        # One that is being replaced is whole before and after.
        return all(size is None or sizes[name] == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def last_whole(output_dir: str | Path) -> str | None:
    """The whole checkpoint of the most steps in `output_dir`, or `None`."""
    steps = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and is_whole(path):
            steps[int(number)] = path
    return str(steps[max(steps)]) if steps else None


def find_checkpoint(asked: str | bool | None, trainer) -> tuple[str | None, dict[str, Any]]:
    """The checkpoint that `train(resume_from_checkpoint=asked)` goes on from (`True`: the last whole one), and what it
    says of itself.

    Raises:
        `ValueError`: if there is none, it is not whole, or another run's (see [`check_same_run`]).
    """
    if asked is None or asked is False:
        return None, {}
    output_dir = trainer.args.output_dir
    folder = last_whole(output_dir) if asked is True else os.fspath(asked)
    if folder is None:
        raise ValueError(f"resume_from_checkpoint=True: no whole checkpoint in output_dir={output_dir!r}.")
    check_whole(folder)
    facts = _facts(folder)
    check_same_run(folder, facts, trainer)
    return folder, facts


def check_whole(folder: str | Path) -> None:
    """Raises `ValueError` unless `folder` is a whole checkpoint."""
    if not is_whole(folder):
        last = last_whole(Path(folder).parent)
        way_out = f"The last whole one is {last}." if last else "There is no whole one beside it; start anew."
        raise ValueError(f"{folder} is no whole checkpoint of this library. {way_out}")


@contextmanager
def written_whole(trainer, folder: str | Path) -> Iterator[None]:
    """Inside, all processes write a checkpoint into `folder`; afterwards it is whole.

    Args:
        trainer ([`UnlearnTrainer`]):
            Its `checkpoint_state` goes into the checkpoint, and its `save_total_limit` is kept.
        folder (`str` or `Path`):
            `checkpoint-<step>` in the run's folder.
    """
    from transformers.trainer_utils import rotate_checkpoints

    args, folder = trainer.args, Path(folder)
    if args.should_save and folder.exists():
        # What a killed run left, or an earlier run's: its files must not be taken for this one's.
        shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()
    # Trainer would delete older checkpoints when the first process is done, while others still write.
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit
    state = trainer.checkpoint_state()
    if state and args.should_save:
        write_method_state(folder, state)
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        _complete(folder, **run_facts(trainer), **trainer.last_step.facts())
        best = trainer.state.best_model_checkpoint
        rotate_checkpoints(folder.parent, limit, best_model_checkpoint=best, use_mtime=True)


def _facts(folder: str | Path) -> dict[str, Any]:
    return read_json(Path(folder) / COMPLETE, "Resume from another checkpoint.")


def refresh(folder: Path, state, **facts) -> None:
    """Replaces the Trainer's state of a checkpoint, which is whole at every moment.

    Args:
        folder (`Path`): a whole checkpoint.
        state (`TrainerState`): what it holds from now on.
        facts: replace what the checkpoint says of itself.
    """
    from transformers.trainer import TRAINER_STATE_NAME

    told = _facts(folder)
    told["files"][TRAINER_STATE_NAME] = None
    _write_facts(folder, told)
    part = folder / f"{TRAINER_STATE_NAME}.tmp"
    state.save_to_json(str(part))
    part.replace(folder / TRAINER_STATE_NAME)
    told["files"][TRAINER_STATE_NAME] = (folder / TRAINER_STATE_NAME).stat().st_size
    _write_facts(folder, told | facts)


def _complete(folder: Path, **facts) -> None:
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    _write_facts(folder, {**facts, "files": files})


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_json(folder / COMPLETE, facts, indent=1)
