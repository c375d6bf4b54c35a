# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn report RUN [RUN ...]`: one report over several runs, or the tables and figures of a sweep or of a
membership-inference audit."""

import argparse
from pathlib import Path

from .help import CommandParser
from .places import check_folder


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn report", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run directory, its report.json, or a folder of run directories; or one sweep's folder or sweep.json; or "
        "one privacy.json or its folder",
    )
    parser.add_argument(
        "--output_dir", help="where the report is written (runs/report, or where the sweep or the privacy.json is)"
    )
    parser.add_argument("--title", default="Comparison of runs", help="shown at the top")
    parser.add_argument("--from_wandb", metavar="ENTITY/PROJECT", help="runs from there; needs the package `wandb`")
    args = parser.parse_args(argv)
    check_folder("--output_dir", args.output_dir)
    if args.from_wandb is not None:
        if args.runs:
            raise ValueError("--from_wandb reads runs from there. Leave out the folders.")
        _report_wandb(args.from_wandb, Path(args.output_dir or "runs/report"))
    elif _is_sweep(args.runs):
        _report_sweep(Path(args.runs[0]), None if args.output_dir is None else Path(args.output_dir))
    elif _is_privacy(args.runs):
        _report_privacy(Path(args.runs[0]), args.output_dir)
    else:
        _report_runs(parser, args)


def _report_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..report import print_report, write_report
    from ..report.privacy import write_privacy_report
    from ..report.privacy_table import PRIVACY_FOLDER
    from .assemble import merge
    from .report_runs import find_runs, load_runs, merge_privacy

    if not args.runs:
        parser.error("name at least one RUN")
    folder = Path(args.output_dir or "runs/report")
    reports, attacked = load_runs(find_runs(args.runs, folder))
    report = merge(reports, args.title)
    privacy = merge_privacy(attacked, args.title) if attacked else None
    files = write_report(report, folder)
    if privacy is not None:
        write_privacy_report(privacy, folder / PRIVACY_FOLDER)
    print_report(report)
    print(f"Report: {files['report.html']}")


def _is_privacy(runs: list[str]) -> bool:
    from .report_runs import is_privacy

    found = [run for run in runs if is_privacy(run)]
    if found and len(runs) > 1:
        raise ValueError(f"{found[0]} is a membership-inference audit's. Name it alone, or the runs that hold such.")
    return bool(found)


def _report_privacy(path: Path, output_dir: str | None) -> None:
    from ..report.privacy import load_privacy_report, print_privacy_report, write_privacy_report

    report = load_privacy_report(path)
    files = write_privacy_report(report, output_dir or (path if path.is_dir() else path.parent))
    print_privacy_report(report)
    print(f"Report: {files['privacy.md']}")


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


def _report_wandb(project: str, output_dir: Path) -> None:
    from ..sweep.wandb_runs import collect_wandb
    from .sweep import write_and_print

    write_and_print(collect_wandb(project), output_dir)
