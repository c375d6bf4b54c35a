# SPDX-License-Identifier: Apache-2.0
"""Real sweeps in the embedded world: killed half way and started again, and over targets."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.report import load_report


pytestmark = pytest.mark.slow

# A few steps, few questions, short answers: about 15 s a run, nearly all of it imports.
TINY = {
    "max_steps": 2,
    "audit_max_items": 4,
    "max_new_tokens": 8,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "steps",
    "save_steps": 1,
}
TIMES = ("seconds", "share_of_retraining", "runtime_s")


def write_sweep(folder: Path, **content) -> Path:
    recipes = [str(ROOT / "recipes" / "demo" / f"{name}.yaml") for name in content.pop("recipes", ("ga", "npo"))]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"recipes": recipes, "fields": TINY, **content}))
    return path


def start(*words) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "hf_unlearn.cli.main", "sweep", *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    return process.communicate(timeout=600)[0]


def without_times(path: Path) -> list[dict]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in csv.DictReader(file)]


def test_a_killed_sweep_repeats_nothing_and_ends_with_the_same_table(tmp_path):
    build_world()
    path = write_sweep(tmp_path, seeds=[0])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(path, "--output_dir", whole)
    said = finish(process)
    assert process.returncode == 0, said

    process = start(path, "--output_dir", broken)
    # In the midst of the second run, when it has something to go on from.
    second = broken / "runs" / "npo-seed0" / "checkpoint-1" / "complete.json"
    end = time.monotonic() + 300
    while not second.is_file():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = finish(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped. The same command goes on." in said
    first = (broken / "runs" / "ga-seed0" / "report.json").read_bytes()

    process = start(path, "--output_dir", broken)
    said = finish(process)
    assert process.returncode == 0, said
    assert "2 runs, 1 done already." in said
    assert "ga-seed0:" not in said
    assert "npo-seed0: goes on" in said
    assert (broken / "runs" / "ga-seed0" / "report.json").read_bytes() == first
    for name in ("table.csv", "long.csv"):
        assert without_times(broken / name) == without_times(whole / name)
    # The target and the retrained model were audited once for all runs.
    assert (whole / "runs" / "npo-seed0" / "log.txt").read_text().count("is read from") == 2

    process = start(path, "--output_dir", broken)
    assert "2 runs, 2 done already." in finish(process)
    assert process.returncode == 0


def test_targets_in_turn_with_privacy_and_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = build_world()
    rows = world.dataset("forget").to_list()
    people = sorted({row["person"] for row in rows})
    # Attacks want ten rows at least: two people a target.
    for name, pair in (("p0", people[:2]), ("p1", people[2:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["person"] in pair))
    for name in ("retain", "holdout"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in world.dataset(name)))
    targets = [{"id": "p0"}, {"id": "p1"}, {"id": "lost"}]
    own = {**TINY, "benchmark": None, "forget_dataset": "{id}.jsonl", "retain_dataset": "retain.jsonl"}
    privacy = {"nonmember_dataset": "holdout.jsonl", "attacks": ["loss"], "fprs": [0.01, 0.1]}
    path = write_sweep(tmp_path, recipes=["ga"], fields=own, targets=targets, privacy=privacy)

    process = start(path, "--output_dir", "out", "--jobs", "2")
    said = finish(process)
    assert process.returncode == 1, said
    assert "ga-lost: failed with status 2" in said
    assert "No file or folder at 'lost.jsonl'" in said
    assert "Not finished: ga-lost (failed)" in said
    with open("out/table.csv") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    assert (rows["result"]["n_targets"], rows["target"]["n_targets"]) == ("2", "2")
    found = [load_report(f"out/runs/ga-p{i}")["models"][-1]["metrics"]["forget/probability"] for i in (0, 1)]
    assert float(rows["result"]["forget/probability"]) == pytest.approx(sum(one["value"] for one in found) / 2)
    assert rows["result"]["privacy/worst/tpr@1e-2"] == ""
    assert float(rows["result"]["privacy/worst/tpr@1e-1"]) > 0.5
    assert rows["target"]["privacy/worst/tpr@1e-1"] != ""
    assert "- ga-lost: no finished report" in Path("out/table.md").read_text()
    assert {path.stem for path in Path("out/plots").iterdir()} >= {"utility", "targets", "privacy", "privacy_roc"}


def test_the_script_for_a_cluster_does_its_run(tmp_path):
    build_world()
    path = write_sweep(tmp_path, seeds=[0, 1])
    script = tmp_path / "job.sh"
    process = start(path, "--output_dir", tmp_path / "out", "--slurm", script)
    assert f"4 runs. Start them with `sbatch {script}`" in finish(process)
    done = subprocess.run(
        ["bash", str(script)],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [folder.name for folder in (tmp_path / "out" / "runs").iterdir()] == ["npo-seed0"]
    report = subprocess.run(
        [sys.executable, "-m", "hf_unlearn.cli.main", "report", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "- npo-seed1: no finished report" in report.stdout
