# SPDX-License-Identifier: Apache-2.0
"""The check for machines with GPUs, as far as a CPU goes."""

import json
import subprocess
import sys

from conftest import ROOT


def _check(folder, *words: str):
    argv = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), str(folder), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)


def test_kernels_are_held_to_float64_and_the_rest_is_named(tmp_path):
    done = _check(tmp_path, "--parts", "kernels", "qlora")
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert len(parts["kernels"]["rows"]) == 8
    assert all(row["ok"] for row in parts["kernels"]["rows"])
    assert parts["qlora"]["rows"][0]["ok"] is None
    assert "left out" in (tmp_path / "gpu_check.md").read_text()


def test_a_part_that_fails_is_a_failure(tmp_path):
    (tmp_path / "model").write_text("in the way")
    done = _check(tmp_path, "--parts", "run")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
