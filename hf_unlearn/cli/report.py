# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn report RUN [RUN ...]`: one report over several runs, or the tables and figures of a sweep or of an
audit of its own."""

import argparse
from pathlib import Path

from ..places import check_file, check_folder
from ..runs.help import CommandParser


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn report", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run directory, its report.json, or a folder of run directories; or one sweep's folder or sweep.json; or "
        "the file of one audit, such as privacy.json, or its folder",
    )
    parser.add_argument(
        "--output_dir", help="output folder (default: runs/report, or the folder of the sweep or of privacy.json)"
    )
    parser.add_argument("--title", default="Comparison of runs", help="title of the report")
    parser.add_argument(
        "--from_wandb", metavar="ENTITY/PROJECT", help="read runs from Weights & Biases; requires the package `wandb`"
    )
    parser.add_argument(
        "--leaderboard", metavar="FILE.md", help="write one page over all methods of a sweep, see docs/leaderboards.md"
    )
    args = parser.parse_args(argv)
    check_folder("--output_dir", args.output_dir)
    if args.leaderboard is not None:
        _write_leaderboard(args)
        return
    if args.from_wandb is not None:
        if args.runs:
            raise ValueError("--from_wandb reads runs from there. Leave out the folders.")
        _report_wandb(args.from_wandb, Path(args.output_dir or "runs/report"))
    elif _is_sweep(args.runs):
        _report_sweep(Path(args.runs[0]), None if args.output_dir is None else Path(args.output_dir))
    elif _is_requests(args.runs):
        _report_requests(Path(args.runs[0]), args.output_dir)
    elif view := _audit_named(args.runs):
        _report_audit(view, Path(args.runs[0]), args.output_dir)
    else:
        _report_runs(parser, args)


def _write_leaderboard(args: argparse.Namespace) -> None:
    """Writes the page of one sweep."""
    from ..report.leaderboard.write import write_leaderboard
    from ..report.sweep.write import load_sweep
    from ..runs.launch import command_line
    from ..sweep.collect import collect

    check_file("--leaderboard", args.leaderboard)
    if len(args.runs) != 1 or not _is_sweep(args.runs) or args.from_wandb or args.output_dir:
        raise ValueError(
            "--leaderboard writes the page of one sweep. Give its folder or its sweep.json, and no other option."
        )
    place = Path(args.runs[0])
    sweep = collect(place) if place.is_dir() else load_sweep(place)
    files = write_leaderboard(sweep, args.leaderboard, command_line())
    print(f"Leaderboard: {', '.join(map(str, files))}")


def _report_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..report import print_report, write_report
    from ..runs.assemble import merge
    from ..runs.finished import find_runs, load_runs, merge_audits

    if not args.runs:
        parser.error("name at least one RUN")
    folder = Path(args.output_dir or "runs/report")
    reports, audited = load_runs(find_runs(args.runs, folder))
    report = merge(reports, args.title)
    merged = merge_audits(audited, args.title)
    files = write_report(report, folder)
    for view, found in merged:
        view.write(found, folder / view.name)
    print_report(report)
    print(f"Report: {files['report.html']}")


def _audit_named(runs: list[str]):
    """The view of the audit whose file is named; `None` where runs are."""
    from ..runs.finished import view_of

    found = {run: view for run in runs if (view := view_of(run)) is not None}
    if found and len(runs) > 1:
        run, view = next(iter(found.items()))
        raise ValueError(
            f"{run} is a {view.about.lower().replace(' ', '-')} audit's. Name it alone, or the runs that hold such."
        )
    return next(iter(found.values()), None)


def _report_audit(view, path: Path, output_dir: str | None) -> None:
    report = view.load(path)
    files = view.write(report, output_dir or (path if path.is_dir() else path.parent))
    view.show(report)
    print(f"{view.word}: {files['md']}")


def _is_sweep(runs: list[str]) -> bool:
    from ..report.sweep.write import SWEEP_FILE
    from ..sweep.manifest import is_sweep

    found = [run for run in runs if Path(run).name == SWEEP_FILE or is_sweep(run)]
    if found and len(runs) > 1:
        raise ValueError(f"{found[0]} is a sweep's, which has a report of its own. Name it alone.")
    return bool(found)


def _report_sweep(path: Path, output_dir: Path | None) -> None:
    from ..report.sweep.write import load_sweep
    from .sweep import report_sweep, write_and_print

    if path.is_dir():
        report_sweep(path, output_dir)
    else:
        write_and_print(load_sweep(path), output_dir or path.parent)


def _is_requests(runs: list[str]) -> bool:
    from ..report.requests.write import REQUESTS_FILE

    found = [run for run in runs if Path(run).name == REQUESTS_FILE or (Path(run) / REQUESTS_FILE).is_file()]
    if found and len(runs) > 1:
        raise ValueError(f"{found[0]} holds requests, which have a report of their own. Name it alone.")
    return bool(found)


def _report_requests(path: Path, output_dir: str | None) -> None:
    from ..report.requests.write import load_requests, print_requests, write_requests

    found = load_requests(path)
    files = write_requests(found, output_dir or (path if path.is_dir() else path.parent))
    print_requests(found)
    print(f"Report: {files['requests.md']}")


def _report_wandb(project: str, output_dir: Path) -> None:
    from ..sweep.wandb_runs import collect_wandb
    from .sweep import write_and_print

    write_and_print(collect_wandb(project), output_dir)
