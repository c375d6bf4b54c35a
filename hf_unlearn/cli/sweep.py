# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn sweep SWEEP.yaml`: many runs from one file, with one table of results.

Finished runs are skipped and interrupted ones resume: the same command starts and completes a sweep. Further fields
(`--benchmark_path data/tofu`) override the recipes' in all runs.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import write_text
from ..places import check_file, check_folder
from ..runs.help import CommandParser


def main(argv: list[str]) -> None:
    args, words = _parser().parse_known_args(argv)
    check_folder("--output_dir", args.output_dir)
    check_file("--slurm", args.slurm)
    if args.recipes is not None and (args.only is not None or args.slurm is not None):
        raise ValueError("--recipes: leave out --only and --slurm, which are of single runs and of all.")
    gpus = None if args.gpus is None else [gpu for gpu in args.gpus.split(",") if gpu]
    _check_processes(args.jobs, gpus)

    from ..places import recipe_path
    from ..sweep.expand import expand
    from ..sweep.manifest import write_manifest
    from ..sweep.spec import read_spec
    from ..sweep.stages import planned
    from ..yaml_file import read_words

    spec = read_spec(recipe_path(args.sweep), read_words(words))
    _check_recipes(args.recipes, spec)
    if spec.accelerate_config is not None:
        _check_launch(spec.accelerate_config, args.jobs, gpus)
    folder = Path(args.output_dir or spec.output_dir or f"runs/sweeps/{spec.name}")
    with same_environment():
        every = expand(spec, folder, resolve)
        _add_privacy(spec, every)
    runs = planned(spec, every, folder)
    if args.only is not None:
        runs = [_only(args.only, runs, every if spec.stages == 2 else runs, folder)]
    states = _states(runs)
    if args.dry_run:
        _show_plan(_of(args.recipes, runs), states, folder)
        if len(every) > len(runs):
            print(f"Then each method's chosen setting with the other seeds, of {len(every) - len(runs)} that may be.")
        return
    if args.only is None:
        write_manifest(folder, runs, spec.settings())
    if args.slurm is not None:
        _write_script(Path(args.slurm), spec, folder, len(runs), words)
        return
    status = _work(_of(args.recipes, runs), states, args.jobs, gpus, spec.accelerate_config)
    if args.only is None and len(more := planned(spec, every, folder)) > len(runs):
        write_manifest(folder, more, spec.settings())
        more = _of(args.recipes, more)
        status = max(status, _work(more, _states(more), args.jobs, gpus, spec.accelerate_config))
    if args.only is None:
        report_sweep(folder)
    if status:
        raise SystemExit(status)


def _parser() -> CommandParser:
    parser = CommandParser(prog="hf-unlearn sweep", description=__doc__)
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="sweep file, see docs/sweep.md")
    parser.add_argument("--output_dir", help="output folder (default: the sweep file's, or runs/sweeps/NAME)")
    parser.add_argument("--dry_run", action="store_true", help="check settings and list the runs without starting any")
    parser.add_argument("--jobs", type=int, metavar="N", help="number of concurrent runs (default: 1, or one per GPU)")
    parser.add_argument("--gpus", metavar="0,1", help="GPUs to distribute runs over, one each")
    parser.add_argument("--slurm", metavar="FILE.sh", help="write an array script for `sbatch` without starting a run")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="run only those of these recipes, by their names")
    parser.add_argument("--only", metavar="RUN", help="run only one, given by name, id or number in manifest.jsonl")
    return parser


def resolve(content: dict, recipe: Path) -> tuple[str, dict]:
    """Method and resolved fields of a recipe's content, parsed with its audits as `hf-unlearn run` would.

    Raises:
        `ValueError`: for what that would refuse.
    """
    from ..runs.audits import read_blocks
    from ..runs.recipe import read_recipe

    parsed = read_recipe(content, recipe.name)
    read_blocks(parsed)
    return parsed.run.method, parsed.resolved()


def report_sweep(folder: Path, output_dir: Path | None = None) -> None:
    """Gathers what came out, writes tables and figures, and prints the main numbers."""
    from ..sweep.collect import collect

    sweep = collect(folder)
    if not sweep["runs"]:
        print(f"No run of {folder} is finished: there is nothing to report.")
        return
    write_and_print(sweep, output_dir or folder)


def write_and_print(sweep: dict, output_dir: Path) -> None:
    """Tables and figures of what was gathered, and the main numbers on the terminal."""
    from ..report.sweep.write import print_sweep, write_sweep_report

    files = write_sweep_report(sweep, output_dir)
    print_sweep(sweep)
    print(f"Report: {files['table.md']}")


def _work(runs, states, jobs, gpus, accelerate_config) -> int:
    """Does the runs and tells how it went; returns the exit status."""
    from ..sweep.progress import DONE, privacy_done
    from ..sweep.worker import FINISHED, Worker, make_slots

    waiting = [run for run in runs if states[run.name] != DONE or not privacy_done(run)]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} done already.", flush=True)
    worker = Worker(make_slots(jobs, gpus), accelerate_config, lambda text: print(text, flush=True))
    outcomes = worker.work(waiting)
    open_ = [run for run in waiting if outcomes.get(run.name) != FINISHED]
    for run in open_:
        print(f"Not finished: {run.name} ({outcomes.get(run.name, 'not begun')})", file=sys.stderr)
    if worker.signals:
        print("Stopped. The same command goes on.", file=sys.stderr)
        raise SystemExit(128 + worker.signals[0])
    return 1 if open_ else 0


def _states(runs) -> dict[str, str]:
    from ..sweep.progress import state_of

    return {run.name: state_of(run) for run in runs}


def _show_plan(runs, states: dict[str, str], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", Column("run", overflow="fold"), "id", "method", "tags", "state", title=str(folder))
    for number, run in enumerate(runs):
        tags = " ".join([*run.tags, *(["tuning"] if run.tuning else [])])
        table.add_row(str(number), run.name, run.id, run.method, tags, states[run.name])
    Console().print(table)
    targets = {run.target for run in runs} - {None}
    about = f", {len(targets)} targets" if targets else ""
    print(f"{len(runs)} runs{about}, {len({run.seed for run in runs})} seeds. Nothing was started.")


def _only(asked: str, runs, every, folder: Path):
    """The run that is asked for; a number counts in the manifest that was written with the script, of some of `every`
    run: with two stages there are more by now.

    Raises:
        `ValueError`: if there is none, or the sweep file has changed since.
    """
    from ..sweep.manifest import is_sweep, read_manifest

    if not asked.isdecimal():
        found = [run for run in runs if asked in (run.name, run.id)]
        if not found:
            raise ValueError(f"--only {asked}: no run has this name or id. `--dry_run` lists them.")
        return found[0]
    known = {run.id: run for run in every}
    listed = [row["id"] for row in read_manifest(folder)[0]] if is_sweep(folder) else [run.id for run in runs]
    if (every is runs and listed != [*known]) or not known.keys() >= {*listed}:
        raise ValueError(
            f"--only {asked}: the sweep file has changed since {folder / 'manifest.jsonl'} was written, and numbers "
            "would mean other runs. Write the script again, or name the run."
        )
    if int(asked) >= len(listed):
        raise ValueError(f"--only {asked}: there are {len(listed)} runs, counted from 0.")
    return known[listed[int(asked)]]


def _check_recipes(names: list[str] | None, spec) -> None:
    known = [entry.name for entry in spec.entries]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"--recipes {unknown[0]}: the sweep has none of this name. Allowed: {', '.join(known)}.")


def _of(names: list[str] | None, runs: list) -> list:
    """The runs of these recipes; the others stay in the manifest, and are missing in the report."""
    return runs if names is None else [run for run in runs if run.label in names]


def _write_script(path: Path, spec, folder: Path, count: int, words: list[str]) -> None:
    from ..sweep.slurm import slurm_script

    (folder / "slurm").mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, slurm_script(spec.name, count, spec.path, folder, spec.slurm, words))
    print(f"{count} runs. Start them with `sbatch {path}`, and then `hf-unlearn report {folder}`.")
    if spec.stages == 2:
        print("When the tuning seed's runs are done, write the script again: it has the chosen settings then.")


def _add_privacy(spec, runs) -> None:
    """Gives every run all fields of its membership-inference audit: the sweep's, or else its recipe's."""
    from ..audit.registry import AUDITS
    from ..runs.audits import block_fields, read_block
    from ..sweep.targets import fill_in

    kind = AUDITS["privacy"]
    targets = {target["id"]: target for target in spec.targets}
    for run in runs:
        if run.privacy is None:
            continue
        asked = run.privacy if run.target is None else fill_in(run.privacy, targets[run.target])
        try:
            run.privacy = block_fields(kind, run.content, asked, run.folder)
            read_block(kind, run.privacy)
        except ValueError as error:
            raise ValueError(f"{spec.path}: {error}") from error


@contextmanager
def same_environment() -> Iterator[None]:
    """A recipe's `env` is set when it is parsed; it is that run's and no other's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_processes(jobs: int | None, gpus: list[str] | None) -> None:
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs {jobs}; give at least 1.")
    if gpus is not None and (not gpus or len(set(gpus)) < len(gpus)):
        raise ValueError(f"--gpus {','.join(gpus)}; give GPUs as `0,1`, each once.")


def _check_launch(name: str, jobs: int | None, gpus: list[str] | None) -> None:
    from ..runs.launch import config_path

    config_path(name)
    if (jobs or 1) > 1 or gpus is not None:
        raise ValueError(
            "`accelerate_config` starts each run on several processes, and `--jobs` or `--gpus` several runs at once. "
            "Leave out one of them."
        )
