# SPDX-License-Identifier: Apache-2.0
"""Runs as processes: one after another or several at once, failures told, signals passed on. What a run does is played
by a few lines of Python; `test_sweep_run.py` has real ones."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hf_unlearn.sweep import worker as working
from hf_unlearn.sweep.expand import Run
from hf_unlearn.sweep.progress import state_of
from hf_unlearn.sweep.slurm import slurm_script
from hf_unlearn.sweep.worker import ELSEWHERE, FAILED, FINISHED, STOPPED, Worker, last_lines, make_slots


# Plays `hf-unlearn run given.yaml` as its recipe's `play` says.
PLAYER = """
import json, os, signal, sys, time, yaml
from pathlib import Path
content = yaml.safe_load(open(sys.argv[2]))
folder, play = Path(content["output_dir"]), content["play"]
with open(folder.parent / "played.txt", "a") as file:
    file.write(json.dumps([folder.name, sys.argv[3:], os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
print("begins", flush=True)
if play == "fail":
    print("step 1\\rstep 2\\rstep 3")
    raise SystemExit("no memory left")
if play == "wait":
    def stop(*_):
        (folder / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (folder / "waiting").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)
if play == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "waiting").touch()
    time.sleep(60)
report = {"schema_version": 1, "title": "t", "created": "c", "suite": "s", "versions": {}, "notes": [],
          "settings": {folder.name: {"play": play, "seed": 0, "output_dir": str(folder)}},
          "models": [{"name": folder.name, "kind": "unlearned", "metrics": {}}]}
(folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(autouse=True)
def _player(tmp_path, monkeypatch):
    (tmp_path / "player.py").write_text(PLAYER)
    monkeypatch.setattr(working, "_command", lambda *words: [sys.executable, str(tmp_path / "player.py"), *words])


@pytest.fixture
def run(tmp_path):
    def run(name: str, play: str = "finish") -> Run:
        folder = tmp_path / "runs" / name
        resolved = {"play": play, "seed": 0, "output_dir": str(folder)}
        content = {"output_dir": str(folder), "play": play}
        return Run(name, name, name, "r.yaml", "ga", {}, [], 0, False, None, folder, content, resolved)

    return run


def played(tmp_path: Path) -> list:
    file = tmp_path / "runs" / "played.txt"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_failure_is_told_and_stops_no_other(run, tmp_path):
    said: list[str] = []
    outcomes = Worker([{}], None, said.append).work([run("a", "fail"), run("b")])
    assert outcomes == {"a": FAILED, "b": FINISHED}
    told = next(text for text in said if "failed with status 1" in text)
    # Of a bar that was drawn over, what was seen last.
    assert told.split("Its log ends:\n")[1].splitlines()[-2:] == ["    step 3", "    no memory left"]
    assert [name for name, *_ in played(tmp_path)] == ["a", "b"]


def test_what_is_done_is_not_done_again(run, tmp_path):
    runs = [run("a"), run("b", "fail")]
    Worker([{}], None, print).work(runs)
    assert Worker([{}], None, print).work(runs) == {"a": FINISHED, "b": FAILED}
    assert [name for name, *_ in played(tmp_path)] == ["a", "b", "b"]
    assert state_of(runs[0]) == "done"
    # A report of other settings is no report of this run.
    report = json.loads((runs[0].folder / "report.json").read_text())
    report["settings"]["a"]["seed"] = 1
    (runs[0].folder / "report.json").write_text(json.dumps(report))
    assert state_of(runs[0]) == "begins"


def test_half_a_report_is_none(run):
    one = run("a")
    Worker([{}], None, print).work([one])
    text = (one.folder / "report.json").read_text()
    (one.folder / "report.json").write_text(text[: len(text) // 2])
    assert state_of(one) == "begins"


def test_a_run_goes_on_from_its_last_whole_checkpoint(run, tmp_path):
    one = run("a")
    checkpoint = one.folder / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    assert state_of(one) == "begins"
    (checkpoint / "complete.json").write_text(json.dumps({"method": "npo", "pairs_a_step": 1, "files": {}}))
    assert state_of(one) == "goes on"
    Worker([{}], "zero3", print).work([one])
    assert played(tmp_path)[0][1] == ["--resume_from_checkpoint", "last", "--accelerate_config", "zero3"]
    Worker([{}], None, print).work([run("b")])
    assert played(tmp_path)[1][1] == ["--overwrite_output", "true"]


def test_several_at_once_each_with_its_gpu(run, tmp_path):
    runs = [run(name) for name in "abcdef"]
    outcomes = Worker(make_slots(None, ["3", "5"]), None, print).work(runs)
    assert set(outcomes.values()) == {FINISHED}
    assert sorted(name for name, *_ in played(tmp_path)) == list("abcdef")
    assert {gpu for *_, gpu in played(tmp_path)} == {"3", "5"}


def test_slots(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert make_slots(None, None) == [{}]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(3, ["0", "1"])] == ["0", "1", "0"]
    assert {slot["OMP_NUM_THREADS"] for slot in make_slots(2, None)} == {str(max(1, os.cpu_count() // 2))}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert make_slots(2, None) == [{}, {}]


def test_a_run_that_another_process_has_is_left_to_it(run, tmp_path):
    one = run("a")
    one.folder.mkdir(parents=True)
    said: list[str] = []
    with working._locked(one.folder) as lock:
        assert lock is not None
        assert Worker([{}], None, said.append).work([one]) == {"a": ELSEWHERE}
    assert "is being run by another process" in said[0]
    assert played(tmp_path) == []
    assert Worker([{}], None, print).work([one]) == {"a": FINISHED}


STARTER = """
import sys
from pathlib import Path
from hf_unlearn.sweep import worker as working
from hf_unlearn.sweep.expand import Run
root, plays = Path(sys.argv[1]), sys.argv[2:]
working._command = lambda *words: [sys.executable, str(root / "player.py"), *words]
runs = []
for name in plays:
    folder = root / "runs" / name
    resolved = {"play": name.split("-")[0], "seed": 0, "output_dir": str(folder)}
    runs.append(Run(name, name, name, "r", "ga", {}, [], 0, False, None, folder, {**resolved}, resolved))
worker = working.Worker([{}, {}], None, lambda text: print(text, flush=True))
print(worker.work(runs), worker.signals, flush=True)
"""


@pytest.fixture
def started(tmp_path):
    """A sweep of its own process; waits until its runs wait."""
    processes = []

    def started(*plays: str):
        (tmp_path / "starter.py").write_text(STARTER)
        words = [sys.executable, str(tmp_path / "starter.py"), str(tmp_path), *plays]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        wait_for(lambda: len(list(tmp_path.glob("runs/*/waiting"))) == 2)
        return process

    yield started
    for process in processes:
        process.kill()


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_runs_save_and_starts_no_more(started, tmp_path, number):
    process = started("wait-1", "wait-2", "finish-3")
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert {path.parent.name for path in tmp_path.glob("runs/*/saved")} == {"wait-1", "wait-2"}
    assert str({"wait-1": STOPPED, "wait-2": STOPPED}) in said or str({"wait-2": STOPPED, "wait-1": STOPPED}) in said
    assert f"[{number.value}]" in said
    assert "finish-3" not in said


def test_a_second_signal_ends_runs_that_do_not_listen(started):
    process = started("deaf-1", "deaf-2")
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0].count("stopped after") == 2


def test_a_run_outlives_a_killed_sweep_and_is_not_started_twice(started, run, tmp_path):
    process = started("wait-1", "wait-2")
    process.kill()
    process.wait()
    assert Worker([{}], None, print).work([run("wait-1", "wait")]) == {"wait-1": ELSEWHERE}
    for path in tmp_path.glob("runs/*/waiting"):
        os.kill(int(path.read_text()), signal.SIGTERM)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/saved"))) == 2)


def test_the_end_of_a_long_log_is_read(tmp_path):
    (tmp_path / "log").write_text("x\n" * 50_000 + "last\n\n")
    assert last_lines(tmp_path / "log", 2) == "    x\n    last"


# The script for a cluster


@pytest.fixture
def script(tmp_path, monkeypatch):
    """An array script whose command is played: it notes its arguments, and waits for SIGTERM if its task is 1."""
    monkeypatch.chdir(tmp_path)
    player = tmp_path / "python with space"
    player.write_text(
        f"#!{sys.executable}\n"
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "Path('args.txt').write_text(repr(sys.argv[1:]))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (Path('saved').touch(), sys.exit(143)))\n"
        "Path('waiting').touch()\n"
        "while sys.argv[-1] == '1': time.sleep(0.05)\n"
        "sys.exit(int(sys.argv[-1]))\n"
    )
    player.chmod(0o755)
    (tmp_path / "bin").mkdir()
    requeue = tmp_path / "bin" / "scontrol"
    requeue.write_text('#!/bin/bash\necho "$@" > requeued.txt\n')
    requeue.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(player))
    options = {"partition": "gpu", "time": "08:00:00", "gres": "gpu:1", "cpus": 8, "mem": "64G", "throttle": 4}
    options["setup"] = ["export FROM_SETUP=yes", "echo set up > setup.txt"]
    text = slurm_script("my sweep", 12, Path("sweep.yaml"), Path("out"), options)
    (tmp_path / "job.sh").write_text(text)

    def start(task: int) -> subprocess.Popen:
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "77"}
        env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
        return subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=env, cwd="/")

    return start, text


def test_the_script_starts_the_run_of_its_task(script, tmp_path):
    start, text = script
    assert start(7).wait(30) == 7
    words = ["-m", "hf_unlearn.cli.main", "sweep", str(tmp_path / "sweep.yaml"), "--output_dir", str(tmp_path / "out")]
    assert (tmp_path / "args.txt").read_text() == repr([*words, "--only", "7"])
    assert (tmp_path / "setup.txt").read_text() == "set up\n"
    heads = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--array=0-11%4", "--partition=gpu", "--gres=gpu:1", "--cpus-per-task=8", "--mem=64G"} <= {*heads}
    assert {"--time=08:00:00", "--requeue", "--signal=B:USR1@180", "--job-name='my sweep'"} <= {*heads}
    assert shlex.split(heads[0]) == ["--job-name=my sweep"]


def test_the_script_saves_and_goes_back_into_the_queue(script, tmp_path):
    start, _ = script
    process = start(1)
    wait_for((tmp_path / "waiting").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued.txt").read_text() == "requeue 77_1\n"


def test_given_recipes_can_be_read_again(run):
    one = run("a")
    Worker([{}], None, print).work([one])
    assert yaml.safe_load((one.folder / "given.yaml").read_text()) == one.content
