# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn tasks`: prints the folder of our lm-eval tasks.

lm_eval --include_path $(hf-unlearn tasks) --tasks rwku_forget_qa --apply_chat_template ...
"""

from pathlib import Path

from ..runs.help import CommandParser


FOLDER = Path(__file__).parents[1] / "lm_eval_tasks"


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn tasks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the tasks' names instead")
    if not parser.parse_args(argv).list:
        print(FOLDER)
        return
    for file in sorted(FOLDER.glob("*/[!_]*.yaml")):
        # One name a file; `lm_eval ls tasks` itself takes half a minute.
        print(f"{file.parent.name}_{file.stem}")
