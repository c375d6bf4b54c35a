# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run RECIPE [--field value ...]`: train, audit, report.

`--accelerate_config NAME|PATH` launches several processes (`--num_processes N` and `--main_process_port P` override
the config). `accelerate launch scripts/unlearn.py --config RECIPE ...` is equivalent.
"""

from ..places import recipe_path
from ..runs.help import fill
from ..runs.launch import launch, take_launch_options


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

    from ..runs.quick import check_recipe

    check_recipe(argv)

    from ..runs.recipe import parse_recipe

    recipe = parse_recipe(argv)
    if accelerate_config is None:
        from .unlearn import unlearn

        unlearn(recipe)
    else:
        from ..runs.audits import run_audits
        from ..runs.parser import read_yaml
        from ..runs.prepare import prepare
        from ..training.launch_check import check_accelerate_config

        # A mistake is told once, before any process starts.
        check_accelerate_config(read_yaml(accelerate_config) | options)
        prepare(recipe)
        run_audits(recipe)
        launch("hf_unlearn.cli.unlearn", accelerate_config, argv, options)
