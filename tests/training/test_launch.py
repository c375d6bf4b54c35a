# SPDX-License-Identifier: Apache-2.0
"""What cannot work under a launch form is refused at start; what came of a launch is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, make_args, make_model, make_tokenizer
from safetensors.torch import load_file

from hf_unlearn import GAConfig, GATrainer, NPOConfig
from hf_unlearn.cli.main import main
from hf_unlearn.processes import shards_weights
from hf_unlearn.training.checkpoints import is_whole, last_whole
from hf_unlearn.training.launch_check import check_accelerate_config, check_launch, tell_launch


CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
no_accelerator = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of a tiny model and rows of one's own."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    for role, count in (("forget", 8), ("retain", 12)):
        rows = [
            {"question": f"Where is {role} {i:02d}?", "answer": f"The {role} {i:02d} is here."} for i in range(count)
        ]
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "method": "npo",
        "model_name_or_path": str(tmp_path / "model"),
        "forget_dataset": str(tmp_path / "forget.jsonl"),
        "retain_dataset": str(tmp_path / "retain.jsonl"),
        "retain_loss": "kl",
        "max_steps": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_chat_template": False,
        "audit": False,
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "recipe.yaml"


def started(kind: str, fsdp=False) -> SimpleNamespace:
    return SimpleNamespace(fsdp=fsdp, distributed_state=SimpleNamespace(distributed_type=kind), world_size=2)


# Refused


def test_fsdp_that_would_be_ddp_is_refused(monkeypatch):
    check_launch(started("MULTI_CPU"))
    with pytest.raises(ValueError, match="accelerate would train with DDP"):
        check_launch(started("MULTI_CPU", fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="accelerate would train with DDP"):
        check_launch(started("MULTI_CPU"))
    check_launch(started("MULTI_GPU"))


def test_a_trainer_is_not_built_where_fsdp_was_asked_for_in_vain(tmp_path, monkeypatch, forget_rows):
    args = make_args(GAConfig, tmp_path / "out")
    args.distributed_state = SimpleNamespace(distributed_type="MULTI_CPU")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("hf_unlearn.modeling.load_model", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="accelerate would train with DDP"):
        GATrainer("owner/name", args, forget_dataset=forget_rows, processing_class=make_tokenizer())


def test_deepspeed_that_is_not_there_is_told(monkeypatch, caplog):
    def trainer(kind):
        accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
        return SimpleNamespace(accelerator=accelerator, model_wrapped=torch.nn.Linear(1, 1), args=started(kind))

    tell_launch(trainer("MULTI_CPU"))
    assert "Training on 2 processes: MULTI_CPU, Linear." in caplog.text
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    tell_launch(trainer("DEEPSPEED"))
    with pytest.raises(ValueError, match="accelerate took MULTI_CPU instead"):
        tell_launch(trainer("MULTI_CPU"))


@pytest.mark.parametrize("kind", ["MULTI_CPU", "NO"])
def test_a_config_that_starts_one_process_of_several_is_refused(kind):
    check_accelerate_config({"distributed_type": kind, "num_processes": 1})
    with pytest.raises(ValueError, match="with 2 processes starts one process"):
        check_accelerate_config({"distributed_type": kind, "num_processes": "2"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_leave_sizes_to_the_recipe(path):
    # T11: with `train_batch_size` DeepSpeed counts processes before it knows them.
    content = yaml.safe_load(path.read_text())
    given = set(content) | set(content.get("deepspeed_config") or {})
    assert not {name for name in given if "batch_size" in name or "accumulation" in name or "clipping" in name}
    if content["distributed_type"] != "FSDP":
        check_accelerate_config(content)


@no_accelerator
def test_the_command_refuses_before_it_starts_processes(recipe, monkeypatch, capsys):
    monkeypatch.setattr("hf_unlearn.runs.launch.os.execv", lambda *words: pytest.fail("processes were started"))
    assert main(["run", str(recipe), "--accelerate_config", "fsdp2", "--num_processes", "2"]) == 2
    assert "accelerate would train with DDP" in capsys.readouterr().err
    assert main(["run", str(recipe), "--accelerate_config", "single_gpu", "--num_processes", "2"]) == 2
    assert "starts one process" in capsys.readouterr().err


def test_compilation_goes_without_the_fused_losses(tmp_path):
    with pytest.raises(ValueError, match="torch_compile cannot trace the fused losses"):
        NPOConfig(output_dir=str(tmp_path), torch_compile=True)
    assert NPOConfig(output_dir=str(tmp_path), torch_compile=True, fused_losses=False).torch_compile


@pytest.mark.parametrize("name", ["activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"])
@pytest.mark.parametrize("given", [{"use_reentrant": True}, '{"use_reentrant": true}'])
def test_reentrant_checkpointing_is_refused_where_something_is_read_inside(tmp_path, name, given):
    with pytest.raises(ValueError, match="reentrant checkpointing cuts"):
        NPOConfig(output_dir=str(tmp_path), retain_loss="nll", value_norm_penalty=0.1, **{name: given})
    assert NPOConfig(output_dir=str(tmp_path), **{name: given}).reentrant


@pytest.mark.parametrize("launcher", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_shards_weights_is_known_before_there_is_an_accelerator(tmp_path, monkeypatch, launcher):
    args = make_args(GAConfig, tmp_path)
    assert not shards_weights(args)
    monkeypatch.setenv(launcher, "true")
    assert shards_weights(args)


# The two public ways, with SIGTERM and resume


def words_of(way: str, config: str, recipe: Path) -> list[str]:
    if way == "hf-unlearn":
        run = ["-m", "hf_unlearn.cli.main", "run", str(recipe), "--accelerate_config", config]
        return [*run, "--num_processes", "2"]
    shipped = ROOT / "accelerate_configs" / f"{config}.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(shipped), "--num_processes", "2"]
    return [*launch, str(ROOT / "scripts" / "unlearn.py"), "--config", str(recipe)]


def begin(words: list[str], folder: Path) -> subprocess.Popen:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["HF_UNLEARN_CACHE"] = str(folder / "cache")
    return subprocess.Popen(
        [sys.executable, *words],
        env=clean | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# multi_gpu starts processes on a machine without GPUs as well.
WAYS = [("hf-unlearn", "zero3"), ("accelerate", "zero3"), ("accelerate", "zero2"), ("hf-unlearn", "multi_gpu")]


@no_accelerator
@pytest.mark.slow
@pytest.mark.parametrize(("way", "config"), WAYS)
def test_both_ways_of_launching_give_what_one_process_gives(way, config, recipe, tmp_path):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed")
    run = begin([*words_of(way, config, recipe), "--output_dir", "two"], tmp_path)
    said, _ = run.communicate(timeout=400)
    assert run.returncode == 0, said[-4000:]
    wrapper = "DEEPSPEED, DeepSpeedEngine" if config.startswith("zero") else "MULTI_CPU, DistributedDataParallel"
    assert said.count(f"Training on 2 processes: {wrapper}.") == 1
    one = ["--output_dir", str(tmp_path / "one"), "--per_device_train_batch_size", "4"]
    assert main(["run", str(recipe), *one]) == 0
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-4, msg=name)


@no_accelerator
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_the_command_saves_and_resume_goes_on(processes, recipe, tmp_path):
    words = ["-m", "hf_unlearn.cli.main", "run", str(recipe), "--output_dir", "run", "--max_steps", "100000"]
    words += ["--per_device_train_batch_size", str(4 // processes), "--learning_rate", "1e-5"]
    words += ["--accelerate_config", "cpu"] * (processes == 2)
    run = begin(words, tmp_path)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert run.poll() is None, run.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=100)
    # A launcher ends with a status of its own.
    assert run.returncode == 143 if processes == 1 else run.returncode != 0
    assert said.count("SIGTERM: stopped after step") == 1
    assert "`--resume_from_checkpoint last`" in said
    if processes == 1:
        assert "Traceback" not in said
    saved = Path(last_whole(tmp_path / "run"))
    assert is_whole(saved)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [saved.name]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "report.json").exists()
    step = int(saved.name.removeprefix("checkpoint-"))
    # The recipe says 100000 steps, which nobody waits for: a resumed run is told to end by the same signal.
    again = begin([*words, "--resume_from_checkpoint", "last"], tmp_path)
    while again.poll() is None and metrics.read_text().count("\n") < step + 3:
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    assert "SIGTERM: stopped after step" in again.communicate(timeout=100)[0]
    logged = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert logged == list(range(1, len(logged) + 1))
    assert len(logged) >= step + 3
