# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn bench`: time and memory of a step of each method, relative to supervised fine-tuning on the same rows.

Weights are random, nothing is downloaded. Every measurement runs in a separate process.
"""

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path

from ..files import write_json, write_text
from ..places import check_file
from ..runs.help import CommandParser


def main(argv: list[str]) -> None:
    from ..bench.cases import CASES, DEFAULT_METHODS, select
    from ..bench.sizes import PRESETS, Size

    parser = CommandParser("hf-unlearn bench", __doc__, "hf-unlearn bench [--preset NAME] [option ...]")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="size of model and batch (%(default)s)")
    parser.add_argument(
        "--methods", nargs="+", default=DEFAULT_METHODS, metavar="NAME", help=f"`all`, or of: sft, {', '.join(CASES)} "
        f"({' '.join(DEFAULT_METHODS)})",
    )  # fmt: skip
    parser.add_argument(
        "--plain", action=argparse.BooleanOptionalAction, default=True,
        help="also measure the plain path: logits of the whole vocabulary, a second model (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=5, help="timed steps per process (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before them (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="processes per method (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch threads (PyTorch's default)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument(
        "--add", action="store_true", help="keep what the file of --json has of other methods, measured alike"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    size_options = parser.add_argument_group("size", "override the preset")
    for field in fields(Size):
        if field.type is bool:
            size_options.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            size_options.add_argument(f"--{field.name}", type=int if field.type is int else str)
    args = parser.parse_args(argv)
    check_file("--json", args.json)
    check_file("--markdown", args.markdown)

    given = {field.name: getattr(args, field.name) for field in fields(Size)}
    size = replace(PRESETS[args.preset], **{name: value for name, value in given.items() if value is not None})
    cases = select(args.methods, args.plain)

    from ..bench.adding import added, here, read_alike
    from ..bench.session import measure_all
    from ..bench.table import describe, markdown, notes, print_table

    counts = {"steps": args.steps, "warmup": args.warmup, "repeats": args.repeats}
    before = None
    if args.add:
        if args.json is None:
            raise ValueError("--add adds to the file of --json, and none is named. Give it.")
        before = read_alike(args.json, {"size": asdict(size), "settings": counts, "machine": here(args.threads)})
    result = measure_all(cases, size, **counts, threads=args.threads)
    result = result if before is None else added(before, result)
    result["preset"] = args.preset
    if args.json is not None:
        write_json(args.json, result, indent=1)
    if args.markdown is not None:
        said = "\n\n".join((describe(result), markdown(result), *notes(result)))
        write_text(args.markdown, f"{said}\n")
    print_table(result)
