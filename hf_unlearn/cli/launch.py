# SPDX-License-Identifier: Apache-2.0
"""Starting a command on several processes with accelerate."""

import os
from pathlib import Path


def take_option(argv: list[str], name: str) -> str | None:
    """Removes `--name value` or `--name=value` from `argv` and returns the value."""
    for i, word in enumerate(argv):
        if word == f"--{name}":
            if i + 1 == len(argv):
                raise ValueError(f"--{name} has no value.")
            value = argv[i + 1]
            del argv[i : i + 2]
            return value
        if word.startswith(f"--{name}="):
            del argv[i]
            return word.split("=", 1)[1]
    return None


def config_path(name: str) -> Path:
    """The accelerate config called `name`: a path, or one that is shipped.

    Raises:
        `ValueError`: if there is none, with the names that there are.
    """
    shipped = Path(__file__).parents[1] / "accelerate_configs"
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    raise ValueError(f"No accelerate config {name!r}. Give a path, or one of: {', '.join(names)}.")


def launch(module: str, config: str, argv: list[str], options: dict[str, str | None]) -> None:
    """Runs `python -m module argv` under `accelerate launch --config_file CONFIG`.

    Args:
        module (`str`): a module of this package with a `main`.
        config (`str`): name or path of an accelerate config.
        argv (`list[str]`): for the module.
        options (`dict`): `num_processes` and `main_process_port` override the config where they are not `None`.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser

    if not torch.accelerator.is_available():
        # DeepSpeed would find out itself, and say so on every process's standard output.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    words = ["--config_file", str(config_path(config)), *given, "--module", module, *argv]
    launch_command(launch_command_parser().parse_args(words))
