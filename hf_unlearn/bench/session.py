# SPDX-License-Identifier: Apache-2.0
"""Runs every case in processes of its own, in turn: A B C A B C, so that a slow spell of the machine meets all.

On a CPU memory is measured apart from time, in a process whose allocator gives back what is freed at once. By default
glibc keeps it, for reasons that have more to do with the order of sizes than with what is needed: peaks of the same
run differ by a third.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from ..files import write_json
from .cases import Case
from .sizes import Size
from .summary import summarise


GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Optimizer states are there from the second step on.
BRIEF = {"steps": 1, "warmup": 1, "beside": False}
MEMORY = ("loaded_bytes", "peak_bytes", "above_model_bytes")


def measure_all(
    cases: Sequence[Case], size: Size, *, steps: int, warmup: int, repeats: int, threads: int | None = None
) -> dict:
    """Measures and sums up.

    Args:
        cases (`Sequence[Case]`): see [`~hf_unlearn.bench.cases.select`].
        size ([`Size`]): of model and batch.
        steps (`int`): timed steps a process.
        warmup (`int`): steps before them.
        repeats (`int`): processes a case.
        threads (`int`, *optional*): PyTorch's threads; its default if left out.

    Returns:
        `dict`: what `--json` writes.

    Raises:
        `ValueError`: if a baseline could not be measured, with the end of its error.
    """
    for name, value in {"steps": steps, "warmup": warmup, "repeats": repeats, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; give at least 1.")
    began = os.getloadavg()[0]
    plan = [(repeat, case) for repeat in range(repeats) for case in cases]
    with tempfile.TemporaryDirectory(prefix="hf_unlearn_bench_") as folder:
        request = {"size": asdict(size), "steps": steps, "warmup": warmup, "threads": threads, "beside": True}
        request["cache"] = f"{folder}/cache"
        runs = list(_runs(plan, request, Path(folder)))
    machine = next((run.pop("machine") for run in runs if "machine" in run), None)
    for run in runs:
        run.pop("machine", None)
    return {
        "schema_version": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "size": asdict(size),
        "settings": {"steps": steps, "warmup": warmup, "repeats": repeats},
        "machine": machine,
        "load_before": began,
        "rows": summarise(runs, cases),
        "runs": runs,
    }


def _runs(plan: list[tuple[int, Case]], request: dict, folder: Path) -> Iterator[dict]:
    import torch
    from tqdm import tqdm

    apart = not torch.cuda.is_available()
    failed: set[str] = set()
    progress = tqdm(plan, unit="run", file=sys.stderr)
    for repeat, case in progress:
        if case.label in failed:
            continue
        progress.set_postfix_str(case.label)
        # Memory first: where this is the first process, a reference pass counts.
        memory = _run(case, request | BRIEF, folder, GIVES_BACK) if apart else {}
        run = memory if "error" in memory else _merged(memory, _run(case, request, folder))
        if "error" in run:
            failed.add(case.label)
            progress.write(f"{case.label}: {run['error']}", file=sys.stderr)
            if case.method is None:
                raise ValueError(f"The baseline {case.label!r} failed: {run['error']}")
        yield {"label": case.label, "repeat": repeat, **run}


def _merged(memory: dict, run: dict) -> dict:
    """Both processes of a run as one."""
    if "error" in run or not memory:
        return run
    tokens = {"preparation_tokens": memory["preparation_tokens"] + run["preparation_tokens"]}
    return {**run, **{name: memory[name] for name in MEMORY}, **tokens}


def _run(case: Case, request: dict, folder: Path, environment: dict | None = None) -> dict:
    asked, result = folder / "request.json", folder / "result.json"
    write_json(asked, request | {"case": asdict(case)})
    result.unlink(missing_ok=True)
    process = subprocess.run(
        [sys.executable, "-m", "hf_unlearn.bench.worker", str(asked), str(result)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | (environment or {}),
    )
    if process.returncode == 0:
        return json.loads(result.read_text())
    lines = process.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"the process ended with status {process.returncode}"}
