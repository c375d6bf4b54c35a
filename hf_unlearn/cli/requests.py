# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run RECIPE --requests FILE`: requests to forget, one run each, and one report of all."""

import shutil
import sys
from pathlib import Path

from ..places import check_folder, recipe_path
from ..runs.launch import command_line


FINISHED_FILES = ("report.json", "recipe.yaml")
SUFFIXES = {"last": "requests", "original": "growing"}


def serve(argv: list[str], file: str, start: str, accelerate_config: str | None) -> None:
    """Serves requests; the same command goes on where it was stopped.

    Args:
        argv (`list[str]`): `--config RECIPE [--field value ...]`.
        file (`str`): the requests.
        start (`str`): `last` or `original`, what each starts from.
        accelerate_config (`str`, *optional*): starts each run on several processes.
    """
    from ..report.requests.write import print_requests, write_requests
    from ..runs.parser import read_yaml, split_config
    from ..sweep.progress import BEGINS, DONE, state_of
    from ..sweep.request_results import check_chain, collect_requests
    from ..sweep.requests import plan_requests, read_requests
    from ..sweep.worker import FINISHED, Worker
    from .sweep import same_environment

    path, words = split_config(argv)
    if path is None:
        raise ValueError("--requests needs a recipe: `hf-unlearn run RECIPE --requests FILE`.")
    content, requests = read_yaml(path), read_requests(recipe_path(file))
    folder = _folder(content, words, path, start)
    with same_environment():
        runs, about = plan_requests(content, path, argv, requests, folder, start)
    if start == "last":
        check_chain(runs)
    waiting = [run for run in runs if state_of(run) != DONE]
    print(f"{len(runs)} requests, {len(runs) - len(waiting)} served already.", flush=True)

    def report() -> dict:
        title = f"{runs[0].method}, {len(runs)} requests" if start == "last" else f"{runs[0].method}, growing sets"
        found = collect_requests(runs, about, start, title, command_line())
        write_requests(found, folder)
        return found

    worker = Worker([{}], accelerate_config, lambda text: print(text, flush=True))
    outcomes: dict[str, str] = {}
    for number, run in enumerate(runs):
        if run not in waiting:
            continue
        if state_of(run) == BEGINS:
            _merge(run.content["model_name_or_path"])
        outcomes = worker.work([run], [f"[{number + 1}/{len(runs)}] {run.name}"])
        report()
        if worker.signals or (start == "last" and outcomes[run.name] != FINISHED):
            break
    found = report()
    print_requests(found)
    print(f"Report: {folder / 'requests.md'}")
    open_ = [run for run in waiting if outcomes.get(run.name) != FINISHED]
    for run in open_:
        print(f"Not finished: {run.name} ({outcomes.get(run.name, 'not begun')})", file=sys.stderr)
    if worker.signals:
        print("Stopped. The same command goes on.", file=sys.stderr)
        raise SystemExit(128 + worker.signals[0])
    if open_:
        raise SystemExit(1)


def _folder(content: dict, words: list[str], path: str, start: str) -> Path:
    """Where the runs go: the command's `--output_dir`, or a folder beside the recipe's own."""
    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--output_dir"]
    given += [word.split("=", 1)[1] for word in words if word.startswith("--output_dir=")]
    own = content.get("output_dir") or f"runs/{Path(path).stem}"
    folder = Path(given[-1] if given else f"{own}-{SUFFIXES.get(start, start)}")
    check_folder("output_dir", folder)
    if any((folder / name).is_file() for name in FINISHED_FILES):
        raise ValueError(f"output_dir={str(folder)!r} holds a run of one recipe. Give another `--output_dir`.")
    return folder


def _merge(model: str) -> None:
    """Makes the model that a run starts from, where that is the last result with its adapter merged."""
    from ..sweep.requests import MERGED
    from .merge import merge

    if Path(model).name == MERGED:
        shutil.rmtree(model, ignore_errors=True)
        merge(str(Path(model).parent), model)
