# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn demo`: runs several methods in the embedded world and compares them in one report. No downloads."""

from pathlib import Path

from ..places import check_folder
from ..runs.help import CommandParser


METHODS = ("ga", "grad_diff", "npo_klr")


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn demo", description=__doc__)
    parser.add_argument("--output_dir", default="runs/demo", help="folder of runs and report (%(default)s)")
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=list(METHODS),
        metavar="NAME",
        help="recipes/demo/NAME.yaml to run (%(default)s)",
    )
    args = parser.parse_args(argv)
    check_folder("--output_dir", args.output_dir)

    import torch

    from ..report import print_report, write_report
    from ..runs.assemble import merge
    from ..runs.recipe import parse_recipe
    from .unlearn import unlearn

    # Models this small gain nothing from more threads, and lose a lot where other processes want the cores too.
    torch.set_num_threads(1)
    recipes, reports = {}, []
    for name in args.recipes:
        path = Path(__file__).parents[1] / "recipes" / "demo" / f"{name}.yaml"
        words = ["--config", str(path), "--output_dir", f"{args.output_dir}/{name}", "--overwrite_output", "true"]
        recipes[name] = parse_recipe(words)
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        print(f"[{number}/{len(recipes)}] {name}")
        reports.append(unlearn(recipe, show=False))
    report = merge(reports, "Unlearning in the embedded world")
    files = write_report(report, args.output_dir)
    print_report(report)
    print(f"Report: {files['report.html']}")
