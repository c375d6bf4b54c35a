# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run RECIPE [--field value ...]`: train, audit, report.

`--accelerate_config NAME|PATH` starts it on several processes (`--num_processes N` and `--main_process_port P`
override the config). `accelerate launch scripts/unlearn.py --config RECIPE ...` is the same without this command.
"""

from pathlib import Path

from .help import fill
from .launch import launch, take_launch_options


USAGE = "usage: hf-unlearn run RECIPE [--field value ...] [--accelerate_config NAME|PATH] [--num_processes N]"


def main(argv: list[str]) -> None:
    """Runs a recipe here, or launches it on several processes."""
    argv = list(argv)
    if not argv:
        raise ValueError(f"No recipe is named. {USAGE}")
    if argv[0] in ("-h", "--help"):
        print(f"{fill(USAGE)}\n\n{fill(__doc__)}\n\nFields (of method `ga` unless `--method` is given):\n")
    elif not argv[0].startswith("--"):
        argv = ["--config", recipe_path(argv[0]), *argv[1:]]
    accelerate_config, options = take_launch_options(argv)

    from .quick import check_recipe

    check_recipe(argv)

    from .recipe import parse_recipe

    recipe = parse_recipe(argv)
    if accelerate_config is None:
        from .unlearn import unlearn

        unlearn(recipe)
    else:
        from ..training.launch_check import check_accelerate_config
        from .parser import read_yaml
        from .prepare import prepare
        from .run_privacy import run_privacy

        # A mistake is told once, before any process starts.
        check_accelerate_config(read_yaml(accelerate_config) | options)
        prepare(recipe)
        run_privacy(recipe)
        launch("hf_unlearn.cli.unlearn", accelerate_config, argv, options)


def recipe_path(name: str) -> str:
    """The path of a recipe or of its rows as it is, or, for `recipes/...`, of the shipped one."""
    shipped = Path(__file__).parents[1] / name
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name
