# SPDX-License-Identifier: Apache-2.0
"""A script for a cluster: an array with one task a run, each of which may be taken away and goes on."""

import shlex
import sys
from pathlib import Path
from typing import Any


SLURM_KEYS = {
    "partition": str,
    "account": str,
    "qos": str,
    "time": (str, int),
    "gres": str,
    "cpus": int,
    "mem": (str, int),
    "throttle": int,
    "setup": list,
    "notice": int,
}
_DIRECTIVES = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "time",
    "gres": "gres",
    "cpus": "cpus-per-task",
    "mem": "mem",
}
# Seconds between the signal and the end of the time limit: for one step and one checkpoint.
NOTICE = 180


def slurm_script(
    name: str, count: int, sweep_file: Path, folder: Path, options: dict[str, Any], fields: list[str] | None = None
) -> str:
    """The text of an array script, for `sbatch`.

    Before its time is over (and when the cluster takes the machine back) SLURM sends SIGUSR1 to the script, which ends
    the run by SIGTERM, upon which it saves a checkpoint, and puts the task back into the queue.

    Args:
        name (`str`): of the sweep.
        count (`int`): runs.
        sweep_file (`Path`), folder (`Path`): the sweep's file and folder.
        options (`dict`): `slurm:` of the sweep file, the keys of `SLURM_KEYS`.
        fields (`list[str]`, *optional*): further words of the command line, which each task repeats.
    """
    throttle = f"%{options['throttle']}" if "throttle" in options else ""
    heads = [f"--job-name={shlex.quote(name)}", f"--array=0-{count - 1}{throttle}"]
    heads += [f"--{_DIRECTIVES[key]}={options[key]}" for key in _DIRECTIVES if key in options]
    heads += [
        f"--output={shlex.quote(str((folder / 'slurm' / '%a.log').absolute()))}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{options.get('notice', NOTICE)}",
    ]
    words = [sys.executable, "-m", "hf_unlearn.cli.main", "sweep", str(sweep_file.absolute())]
    words += ["--output_dir", str(folder.absolute()), *(fields or [])]
    setup = "\n".join(map(str, options.get("setup", [])))
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {head}" for head in heads),
            "",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            *([setup] if setup else []),
            "",
            "save_and_requeue() {",
            '    kill -TERM "$run" && wait "$run"',
            '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
            "    exit 0",
            "}",
            "trap save_and_requeue USR1",
            "",
            # In the background: bash runs a trap only when what it waits for may be interrupted.
            f'{shlex.join(words)} --only "$SLURM_ARRAY_TASK_ID" &',
            "run=$!",
            'wait "$run"',
            "",
        ]
    )
