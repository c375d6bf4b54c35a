# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn env` says what a bug report needs, on broken installations too, and no secrets."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
import yaml

from hf_unlearn import __version__
from hf_unlearn import versions as versions_module
from hf_unlearn.cli import env
from hf_unlearn.cli.main import main


@pytest.fixture
def said(capsys):
    def said() -> dict[str, str]:
        assert main(["env"]) == 0
        return dict(line.removeprefix("- ").split(": ", 1) for line in capsys.readouterr().out.splitlines())

    return said


def test_versions_and_machine_are_told(said, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "not" / "there"))
    found = said()
    assert found["hf_unlearn"] == __version__
    assert found["python"] == sys.version.split()[0]
    for package in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub"):
        assert found[package] == version(package)
    assert "gloo" in found["distributed backends"]
    assert found["memory"].endswith(" GiB")
    assert f"{tmp_path}/not/there" in found["cache"]
    assert "GiB free, not there yet" in found["cache"]
    assert f"HF_UNLEARN_CACHE={tmp_path}" in found["variables"]
    if not torch.accelerator.is_available():
        assert found["accelerators"] == "none"


def test_packages_that_are_missing_are_named(said, monkeypatch):
    def lookup(name):
        if name in ("deepspeed", "peft"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(versions_module, "version", lookup)
    found = said()
    assert {"deepspeed", "peft"} <= set(found["not installed"].split(", "))
    assert "deepspeed" not in found
    assert found["torch"] == torch.__version__


def test_a_broken_installation_is_told_of_too():
    """Libraries that cannot be imported, in a process of its own."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'accelerate', 'huggingface_hub', 'yaml')));"
        "from hf_unlearn.cli.main import main; sys.exit(main(['env']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("accelerators", "CUDA", "distributed backends", "accelerate config", "Hub cache"):
        assert f"- {name}: unknown (" in done.stdout
    assert f"- torch: {version('torch')}" in done.stdout


def test_the_accelerate_config_in_use_is_told_without_addresses(said, monkeypatch, tmp_path):
    config = {
        "distributed_type": "DEEPSPEED",
        "num_processes": 8,
        "deepspeed_config": {"zero_stage": 3},
        "main_process_ip": "10.1.2.3",
    }
    path = tmp_path / "default_config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(path))
    told = said()["accelerate config"]
    assert told == f"{path}: distributed_type=DEEPSPEED, num_processes=8, deepspeed_config={{'zero_stage': 3}}"
    path.unlink()
    assert "none at" in said()["accelerate config"]


def test_no_token_is_told(monkeypatch, capsys):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_secret_value")
    main(["env"])
    assert "hf_secret_value" not in capsys.readouterr().out


def test_gpus_are_named_with_their_memory(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA H100 80GB HBM3", 80 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    one = "NVIDIA H100 80GB HBM3 (80 GiB, sm_90)"
    assert dict(env.environment())["accelerators"] == f"{one}, {one}"
