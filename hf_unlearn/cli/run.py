# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run RECIPE [--field value ...]`: train, audit, report.

`--accelerate_config NAME|PATH` launches several processes (`--num_processes N` and `--main_process_port P` override
the config). `accelerate launch scripts/unlearn.py --config RECIPE ...` is equivalent.

`--requests FILE` serves requests one after another, each a run from the result of the one before it
(`--requests_from original`: from the recipe's model, for forget sets that grow). FILE is a YAML or JSON list:
an `id` and the fields that differ each, `- {id: ada, forget_where: {person: Ada}}`.
"""

from ..places import recipe_path
from ..runs.help import fill
from ..runs.launch import launch, take_launch_options, take_option


USAGE = (
    "usage: hf-unlearn run RECIPE [--field value ...] [--accelerate_config NAME|PATH] [--num_processes N] "
    "[--requests FILE [--requests_from last|original]]"
)


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
    requests, start = take_option(argv, "requests"), take_option(argv, "requests_from")
    if requests is not None:
        from .requests import serve

        if options:
            raise ValueError(
                f"--{next(iter(options))} does not go with --requests. Write it into the accelerate config."
            )
        return serve(argv, requests, start or "last", None if accelerate_config is None else str(accelerate_config))
    if start is not None:
        raise ValueError("--requests_from goes with `--requests FILE`.")

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
