# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn plan RECIPE [--field value ...]`: estimates whether a recipe fits the GPUs, and what would make it fit.

Only the model's config is read. Options: `--gpus N` (default: the accelerate config's, or 1), `--gpu_memory GIB` of
each (80), `--accelerate_config NAME|PATH`, `--row_length N` (maximum row length in tokens; `max_length`),
`--tokens_per_row N` (mean number of predicted tokens per row, for the cache on disk; 60), `--json FILE`.
"""

import os
from pathlib import Path

from ..files import write_json
from ..places import check_file
from ..runs.help import fill
from ..runs.launch import config_path, take_option


USAGE = "usage: hf-unlearn plan RECIPE [--gpus N] [--gpu_memory GIB] [--accelerate_config NAME] [--field value ...]"
NUMBERS = {"gpus": int, "gpu_memory": float, "row_length": int, "tokens_per_row": float}


def main(argv: list[str]) -> None:
    argv = list(argv)
    if not argv:
        raise ValueError(f"No recipe is named. {USAGE}")
    if argv[0] in ("-h", "--help"):
        print(f"{fill(USAGE)}\n\n{fill(__doc__)}")
        return
    numbers = {name: _number(name, kind, take_option(argv, name)) for name, kind in NUMBERS.items()}
    accelerate_config = take_option(argv, "accelerate_config")
    output = take_option(argv, "json")
    check_file("--json", output)

    from ..places import recipe_path
    from ..runs.quick import check_recipe

    words = argv if argv[0].startswith("--") else ["--config", recipe_path(argv[0]), *argv[1:]]
    check_recipe(words)

    # A plan is made on machines without the GPUs that it is for.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from ..plan.engines import read_engine
    from ..plan.memory import GIB
    from ..plan.table import as_dict, plan, print_plan
    from ..plan.workload import read_workload
    from ..runs.recipe import parse_recipe

    engine = read_engine(None if accelerate_config is None else config_path(accelerate_config), numbers["gpus"])
    planned = read_workload(parse_recipe(words), engine, numbers["row_length"], numbers["tokens_per_row"])
    gpu_memory = (numbers["gpu_memory"] or 80) * GIB
    need, found = plan(planned, gpu_memory)
    if output is not None:
        write_json(Path(output), as_dict(planned, need, found, gpu_memory), indent=1)
    print_plan(planned, need, found, gpu_memory)


def _number(name: str, kind: type, text: str | None):
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise ValueError(f"--{name} {text}: give a number above 0.")
    return value
