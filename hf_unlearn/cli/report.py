# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn report RUN [RUN ...]`: one report over several runs."""

import argparse


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="hf-unlearn report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or its report.json")
    parser.add_argument("--output_dir", default="runs/report", help="where the report is written (%(default)s)")
    parser.add_argument("--title", default="Comparison of runs", help="shown at the top")
    args = parser.parse_args(argv)

    from ..report import load_report, print_report, write_report
    from .assemble import merge

    report = merge([load_report(run) for run in args.runs], args.title)
    files = write_report(report, args.output_dir)
    print_report(report)
    print(f"Report: {files['report.html']}")
