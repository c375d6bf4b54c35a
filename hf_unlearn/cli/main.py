# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn COMMAND ...`: finds the command and hands the rest of the line to it."""

import os
import sys
from difflib import get_close_matches
from importlib import import_module

from ..runs.help import entries, fill
from ..training.faults import NonFiniteError
from .faults import explained


# command -> (module, what it does)
COMMANDS = {
    "demo": ("demo", "run several methods in the embedded world and compare them; no downloads"),
    "run": ("run", "RECIPE [--field value ...] [--accelerate_config NAME|PATH]: train, audit, report"),
    "sweep": ("sweep", "SWEEP.yaml [--dry_run]: many runs (methods, settings, seeds, targets), one table"),
    "prepare": (
        "prepare_models",
        "BENCHMARK --model_name_or_path BASE: train its target and retrained models",
    ),
    "eval": ("evaluate", "--model_name_or_path MODEL --benchmark NAME: audit any checkpoint"),
    "audit": ("audit", "KIND --model_name_or_path MODEL ...: privacy, backdoor and other audits"),
    "report": ("report", "RUN [RUN ...]: one report over several runs, or a sweep's tables and figures"),
    "gates": ("gates", "RUN [--thresholds FILE]: compare a run with thresholds; exit status for pipelines"),
    "push": ("push", "RUN --hub_model_id OWNER/NAME: upload weights, tokenizer and model card in one commit"),
    "merge": ("merge", "ADAPTER --output_dir FOLDER: merge an adapter into its base model"),
    "bench": ("bench", "--preset cpu|1b|7b: time and memory of a step, relative to fine-tuning on the same rows"),
    "plan": ("plan", "RECIPE --gpus N --gpu_memory GB: estimate whether a recipe fits, and how to make it fit"),
    "tasks": ("tasks", "print the folder of our lm-eval tasks, for `lm_eval --include_path $(hf-unlearn tasks)`"),
    "methods": ("methods", "list the methods and their arguments"),
    "env": ("env", "print versions and environment for a bug report"),
}


def usage() -> str:
    what = entries((name, what) for name, (_, what) in COMMANDS.items())
    return f"usage: hf-unlearn COMMAND ...\n\n{what}\n\n{fill('See `hf-unlearn COMMAND --help`.')}"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status. A mistake of the user's is one line, not a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        allowed = ", ".join(COMMANDS)
        print(f"hf-unlearn: error: unknown command {command!r}.{hint} Allowed: {allowed}.", file=sys.stderr)
        return 2
    module = import_module(f".{COMMANDS[command][0]}", __package__)
    return run_guarded(module.main, rest)


def run_guarded(function, argv: list[str]) -> int:
    """Calls a command; returns its exit status. What is explained by itself is shown as one line: 2 for a mistake, 1
    for training that diverged or memory that was not enough, 130 for Ctrl-C."""
    try:
        function(argv)
    except (Exception, KeyboardInterrupt) as error:
        told = explained(error)
        if told is None:
            raise
        line, status = told
        # Where all processes stop for the same reason, the first one tells.
        if not isinstance(error, (NonFiniteError, KeyboardInterrupt)) or os.environ.get("RANK", "0") == "0":
            print(f"hf-unlearn: error: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
