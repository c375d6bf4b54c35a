# SPDX-License-Identifier: Apache-2.0
"""Starting a command on several processes with accelerate."""

import atexit
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn


COMMAND = "HF_UNLEARN_COMMAND"
# What may override an accelerate config, from and to; port 0 is any that is free.
LAUNCH_OPTIONS = {"num_processes": (1, 100_000), "main_process_port": (0, 65535)}


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


def take_launch_options(argv: list[str]) -> tuple[Path | None, dict[str, str]]:
    """Removes `--accelerate_config`, `--num_processes` and `--main_process_port` from `argv`.

    Returns:
        `tuple`: the accelerate config's path, if one is named, and what overrides it.
    """
    config = take_option(argv, "accelerate_config")
    options = {name: take_option(argv, name) for name in LAUNCH_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    if given and config is None:
        raise ValueError("`--num_processes` and `--main_process_port` go with `--accelerate_config NAME|PATH`.")
    for name, value in given.items():
        least, most = LAUNCH_OPTIONS[name]
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ValueError(f"--{name} {value}: give a whole number from {least} to {most}.")
    return None if config is None else config_path(config), given


def launch(module: str, config: Path, argv: list[str], options: dict[str, str]) -> NoReturn:
    """Goes on as `accelerate launch --config_file CONFIG --module MODULE ARGV`.

    This process is replaced, not kept waiting: what it holds of a GPU is the trainers' again.

    Args:
        module (`str`): a module of this package that runs its `main`.
        config (`Path`): an accelerate config.
        argv (`list[str]`): for the module.
        options (`dict`): override the config.
    """
    import torch

    from ..training.launch_check import check_accelerate_config
    from .parser import read_yaml

    check_accelerate_config(read_yaml(config) | options)
    if not torch.accelerator.is_available():
        # DeepSpeed would find out itself, and say so on every process's standard output.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ[COMMAND] = command_line()
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    words = ["--config_file", str(config), *given, "--module", module, *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *words])


def leave(status: int) -> int:
    """The last call of a launched process; the process ends here where it would abort while Python is torn down.

    On processors, threads of process groups that DeepSpeed keeps let go of their last tensors when the interpreter is
    gone: with ZeRO-3 most runs ended in SIGABRT after all their work was done.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def command_line() -> str:
    """The command that was typed, also in a process that `launch` started."""
    program = Path(sys.argv[0])
    name = "hf-unlearn" if program.name in ("hf-unlearn", "main.py", "__main__.py") else str(program)
    if os.environ.get(COMMAND):
        return os.environ[COMMAND]
    words = list(sys.argv[1:])
    if take_option(words, "hub_token") is not None:
        # The command stands in reports.
        words += ["--hub_token", "..."]
    return shlex.join([name, *words])
