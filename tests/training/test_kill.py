# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at any moment: the run goes on from the last whole checkpoint and ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TESTS, changed, make_model, make_tokenizer, weights
from processes import run
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from hf_unlearn.cli.main import main as command
from hf_unlearn.report import load_report
from hf_unlearn.training.checkpoints import last_whole


WORKER = TESTS / "distributed" / "kill_worker.py"
sys.path.append(str(WORKER.parent))

from kill_worker import make_trainer  # noqa: E402


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A model to start from, on disk."""
    folder = tmp_path_factory.mktemp("start")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The run that nobody killed."""
    trainer = make_trainer(start, str(tmp_path_factory.mktemp("whole")))
    trainer.train()
    return trainer


def launch(moment: str, folder: Path, start: str, rank: int = 0) -> subprocess.CompletedProcess:
    """The run on two processes under ZeRO-3."""
    config = ROOT / "hf_unlearn" / "accelerate_configs" / "zero3.yaml"
    words = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    return subprocess.run(
        [sys.executable, *words, str(WORKER), start, str(folder), moment, str(rank)],
        env=clean | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )


# moment: the last whole checkpoint, and what transformers by itself would take
MOMENTS = {"step": (2, 2), "save": (2, 4), "evaluate": (2, 2), "end": (7, 7)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(moment, start, whole, tmp_path):
    folder = tmp_path / "run"
    status, said = run(WORKER, start, str(folder), moment, "0")
    assert status == -signal.SIGKILL, said[-3000:]
    good, newest = MOMENTS[moment]
    assert last_whole(folder) == str(folder / f"checkpoint-{good}")
    assert get_last_checkpoint(str(folder)) == str(folder / f"checkpoint-{newest}")
    resumed = make_trainer(start, str(folder))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7
    assert not changed(weights(whole.model), weights(resumed.model))
    assert torch.equal(whole.pull, resumed.pull)
    curves = [[entry for entry in one.state.log_history if "loss" in entry] for one in (whole, resumed)]
    assert curves[0] == curves[1]


def test_two_processes_under_zero3_survive_the_loss_of_one_while_they_save(start, whole, tmp_path):
    pytest.importorskip("deepspeed")
    folder = tmp_path / "run"
    assert launch("save", folder, start, rank=1).returncode != 0
    # The first process had all of its part on disk.
    assert (folder / "checkpoint-4" / "model.safetensors").is_file()
    assert last_whole(folder) == str(folder / "checkpoint-2")
    done = launch("never", folder, start)
    assert done.returncode == 0, done.stderr[-3000:]
    assert last_whole(folder) == str(folder / "checkpoint-7")
    saved, expected = load_file(folder / "model.safetensors"), weights(whole.model)
    assert saved.keys() == expected.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_in_the_final_audit_ends_it_and_loses_nothing(start, tmp_path, processes):
    for kind in ("forget", "retain"):
        rows = [{"question": f"Where is {kind} {i}?", "answer": f"In {i}."} for i in range(8)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "method": "npo",
        "retain_loss": "kl",
        "model_name_or_path": start,
        "forget_dataset": str(tmp_path / "forget.jsonl"),
        "retain_dataset": str(tmp_path / "retain.jsonl"),
        "max_new_tokens": 4,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--config", str(tmp_path / "recipe.yaml"), "--output_dir"]
    launcher, worker = [], WORKER.parent / "audit_worker.py"
    if processes == 2:
        config = ROOT / "hf_unlearn" / "accelerate_configs" / "cpu.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    going = subprocess.Popen(
        [sys.executable, *launcher, str(worker), str(tmp_path / "begun"), *words, str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("begun-*"))) < processes:
        assert going.poll() is None, going.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    sent = time.monotonic()
    going.send_signal(signal.SIGTERM)
    said, _ = going.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    # A launcher ends with a status of its own.
    assert going.returncode == 143 if processes == 1 else going.returncode != 0, said[-3000:]
    folder = tmp_path / "run"
    saved = load_file(folder / "model.safetensors")
    assert last_whole(folder) == str(folder / "checkpoint-3")
    assert not (folder / "report.json").exists()
    metrics = (folder / "metrics.jsonl").read_text()
    more = ["--accelerate_config", "cpu", "--num_processes", "2"] if processes == 2 else []
    again = [sys.executable, "-m", "hf_unlearn.cli.main", "run", *words, str(folder), *more]
    done = subprocess.run([*again, "--resume_from_checkpoint", "last"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in saved.items())
    # No step was made.
    assert [line for line in metrics.splitlines() if "loss" in json.loads(line)] == [
        line for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in json.loads(line)
    ]
    assert not list(folder.glob("checkpoint-*"))
    if processes == 1:
        assert command(["run", *words, str(tmp_path / "whole")]) == 0
        reports = [load_report(one) for one in (folder, tmp_path / "whole")]
        metrics = [{model["kind"]: model["metrics"] for model in report["models"]} for report in reports]
        assert metrics[0] == metrics[1]
