# SPDX-License-Identifier: Apache-2.0
"""Scripts on one or several processes, forked from one that has imported what they need.

An interpreter spends some six seconds on imports, and `torchrun` starts three for two processes. These are forked from
a process that stands ready, and know each other by the variables that `torchrun` sets. What launchers do themselves is
for tests that start one (`test_launch`, `test_launch_forms`).
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import threading
import time
import warnings
from multiprocessing.connection import wait
from pathlib import Path

from hf_unlearn import NPOTrainer
from hf_unlearn.audit import audit_model


READY = ["torch.distributed", "transformers.models.llama.modeling_llama", "peft", "datasets", "accelerate"]
READY += [NPOTrainer.__module__, audit_model.__module__, "pytest"]
# Of a launcher around the tests.
FOREIGN = ("ACCELERATE_", "FSDP_")


def run(script: Path, *argv: str, processes: int = 1, timeout: float = 400, **variables: str) -> tuple[int, str]:
    """Runs a script to its end, or until one of its processes fails, which ends the others.

    Args:
        script (`Path`): run as `__main__`.
        argv (`str`): its arguments.
        processes (`int`): how many; several are one job of `torch.distributed`, one knows nothing of it.
        timeout (`float`): seconds.
        variables (`str`): of the environment, beside those of the tests.

    Returns:
        `tuple[int, str]`: the status of the first process that failed (negative for a signal), or 0, and what all
        processes wrote.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", **variables}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        ranks = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {"RANK": "0"}
            given = (str(script), argv, environment | own, log.name)
            ranks.append(_forks().Process(target=_main, args=given))
            ranks[-1].start()
        try:
            return _status(ranks, time.monotonic() + timeout), log.read()
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _status(ranks: list, deadline: float) -> int:
    running = list(ranks)
    while running:
        wait([rank.sentinel for rank in running], max(0, deadline - time.monotonic()))
        failed = [rank.exitcode for rank in ranks if rank.exitcode]
        if failed:
            return failed[0]
        assert time.monotonic() < deadline, "The processes ran longer than they may."
        running = [rank for rank in running if rank.exitcode is None]
    return 0


def _forks():
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(READY)
    return forks


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(script: str, argv: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    import torch
    from tqdm import tqdm

    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()
    # The lock that it makes itself is shared by processes, and left behind by those that end with `os._exit`.
    tqdm.set_lock(threading.RLock())
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")
