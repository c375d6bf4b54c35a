# SPDX-License-Identifier: Apache-2.0
"""RMU in two processes gives what it gives in one: a forward that ends at a layer, states from disk, one control
vector."""

from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from test_distributed import assert_same_run, assert_same_weights, deepspeed, launch, saved


pytestmark = pytest.mark.slow

RMU = {"layer_id": 2, "layer_ids": [1, 2], "steering_coeffs": [200.0], "retain_weight": 10.0, "retain_loss": "states"}
VARIANTS = {"states": {}, "kl": {"kl_coeff": 5.0}, "adaptive": {"adaptive_scale": 500.0}}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("start")
    make_model(layers=4).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def settings_of(model: str, adapter: str = "none", **args) -> dict:
    defaults = RMU | {"max_steps": 4, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    return {"method": "rmu", "model": model, "adapter": adapter, "args": defaults | args}


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """Runs one process of batch 4, once for each variant."""
    found: dict[tuple[str, str], tuple[dict, Path]] = {}

    def run(variant: str, adapter: str = "none") -> tuple[dict, Path]:
        if (variant, adapter) not in found:
            folder = tmp_path_factory.mktemp("alone") / "run"
            settings = settings_of(start, adapter, per_device_train_batch_size=4, **VARIANTS[variant])
            result = launch(settings, folder, 1)
            assert result["world"] == 1
            steps = [entry for entry in result["log"] if "forget/loss" in entry]
            # The run must do something, or agreement says nothing.
            assert steps[-1]["retain/loss"] > 1e-6
            assert changed_names(start, folder) or adapter != "none"
            found[variant, adapter] = result, folder
        return found[variant, adapter]

    return run


def changed_names(start: str, folder: Path) -> set[str]:
    before, after = load_file(f"{start}/model.safetensors"), folder / "model.safetensors"
    if not after.exists():
        return set()
    after = load_file(after)
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())}


@pytest.mark.parametrize(
    ("variant", "adapter", "settings"),
    [
        ("states", "none", {"reference": "cache"}),
        ("states", "none", {"reference": "live", "cache_frozen": False}),
        ("states", "fresh", {"reference": "adapter"}),
        ("states", "none", {"gradient_checkpointing": True, "per_device_train_batch_size": 1,
                            "gradient_accumulation_steps": 2}),
        ("kl", "none", {"reference": "cache"}),
        ("adaptive", "none", {"reference": "live"}),
    ],
)  # fmt: skip
def test_ddp_equals_one_process_of_the_whole_batch(start, alone, tmp_path, variant, adapter, settings):
    result = launch(settings_of(start, adapter, **VARIANTS[variant], **settings), tmp_path / "run", 2)
    assert (result["world"], result["wrapper"]) == (2, "DistributedDataParallel")
    expected, folder = alone(variant, adapter)
    assert_same_run(result, expected)
    assert_same_weights(tmp_path / "run", folder, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "variant", "adapter", "reference"),
    [
        (2, "states", "none", "live"),
        (3, "states", "none", "cache"),
        (3, "states", "none", "live"),
        (3, "states", "fresh", "adapter"),
        (3, "kl", "none", "cache"),
        (3, "kl", "none", "live"),
        (3, "adaptive", "none", "cache"),
    ],
)
def test_deepspeed_equals_one_process_of_the_whole_batch(start, alone, tmp_path, stage, variant, adapter, reference):
    settings = settings_of(start, adapter, reference=reference, deepspeed=deepspeed(stage), **VARIANTS[variant])
    result = launch(settings, tmp_path / "run", 2)
    assert (result["world"], result["wrapper"]) == (2, "DeepSpeedEngine")
    assert result["reference"] == reference
    expected, folder = alone(variant, adapter)
    assert_same_run(result, expected)
    if (stage, adapter) != (3, "fresh"):
        assert_same_weights(tmp_path / "run", folder, atol=1e-4)
        return
    # What RMU does not train of a fresh adapter is as PEFT makes it, of no effect.
    found, wanted = saved(tmp_path / "run"), saved(folder)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        if ".1." in name or ".2." in name:
            torch.testing.assert_close(found[name].float(), weight.float(), rtol=0, atol=1e-4, msg=name)
        else:
            assert "lora_A" in name or not (weight.any() or found[name].any())


def test_two_processes_steer_to_one_vector_after_a_resume(start, tmp_path):
    settings = settings_of(start, save_strategy="steps", save_steps=2, adaptive_scale=500.0)
    launch(settings, tmp_path / "whole", 2)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    state = load_file(checkpoint / "method_state.safetensors")
    assert state["control"].shape == (1, 32)
    assert state["coeffs"].isfinite().all()
    launch(settings | {"resume": str(checkpoint)}, tmp_path / "rest", 2)
    assert_same_weights(tmp_path / "rest", tmp_path / "whole", atol=0)
