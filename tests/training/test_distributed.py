# SPDX-License-Identifier: Apache-2.0
"""Two processes give what one process gives on the same rows: DDP, ZeRO-2 and ZeRO-3, on the CPU.

Every test asserts how many processes there were and what wrapped the model: several launchers fall back to unconnected
single processes and end without an error.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TESTS, make_model, make_tokenizer
from processes import run
from safetensors.torch import load_file


WORKER = TESTS / "distributed" / "worker.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A model to start from, on disk."""
    folder = tmp_path_factory.mktemp("start")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def launch(settings: dict, folder: Path, processes: int) -> dict:
    """Runs the worker in one process without a launcher, or in several."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    # A cached reference is filled by the processes of this test, not found from another's.
    cache = str(folder.parent / "cache")
    status, said = run(WORKER, str(folder / "settings.json"), processes=processes, HF_UNLEARN_CACHE=cache)
    assert status == 0, said[-6000:]
    return json.loads((folder / "result.json").read_text())


def settings_of(model: str, adapter: str = "none", **args) -> dict:
    # Evaluation batches that divide both sets: Trainer fills the last ones of several processes up with other rows.
    defaults = {"retain_loss": "kl", "max_steps": 6, "max_forget_loss": 100.0, "per_device_eval_batch_size": 2}
    defaults["per_device_train_batch_size"] = 2
    return {"method": "npo", "model": model, "adapter": adapter, "args": defaults | args}


def curve(result: dict) -> dict[str, list[float]]:
    steps = [entry for entry in result["log"] if "forget/loss" in entry]
    return {key: [entry[key] for entry in steps] for key in steps[0] if "/" in key or key in ("loss", "grad_norm")}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = [p for p in (folder / "adapter_model.safetensors", folder / "model.safetensors") if p.exists()]
    return load_file(path)


def assert_same_run(left: dict, right: dict, rel: float = 1e-3) -> None:
    curves = curve(left), curve(right)
    assert curves[0].keys() == curves[1].keys()
    for key, values in curves[0].items():
        assert values == pytest.approx(curves[1][key], rel=rel, abs=2e-5), key
    for name in ("eval_forget_loss", "eval_retain_loss"):
        assert left["metrics"][name] == pytest.approx(right["metrics"][name], rel=rel)
    # Batches are padded differently, and only some references read along.
    assert left["flops"] == pytest.approx(right["flops"], rel=0.4)


def assert_same_weights(left: Path, right: Path, atol: float) -> None:
    first, second = saved(left), saved(right)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name].float(), second[name].float(), rtol=0, atol=atol, msg=name)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """Runs one process of batch 4, once for each kind of adapter."""

    @cache
    def run(adapter: str) -> tuple[dict, Path]:
        folder = tmp_path_factory.mktemp("alone") / "run"
        result = launch(settings_of(start, adapter, per_device_train_batch_size=4), folder, 1)
        assert result["world"] == 1
        assert result["kind"].endswith("NO")
        # The run must do something, or agreement says nothing.
        assert result["log"][5]["forget/logps"] < result["log"][0]["forget/logps"] - 1
        return result, folder

    return run


@pytest.mark.parametrize(
    ("adapter", "reference", "accumulation"),
    [("none", "live", 1), ("none", "cache", 2), ("fresh", "adapter", 1), ("trained", "adapter", 1)],
)
def test_ddp_equals_one_process_of_the_whole_batch(start, alone, tmp_path, adapter, reference, accumulation):
    size = {"per_device_train_batch_size": 2 // accumulation, "gradient_accumulation_steps": accumulation}
    result = launch(settings_of(start, adapter, reference=reference, **size), tmp_path / "run", 2)
    assert result["reference"] == reference
    assert result["world"] == 2
    assert result["kind"].endswith("MULTI_CPU")
    assert result["wrapper"] == "DistributedDataParallel"
    expected, folder = alone(adapter)
    assert_same_run(result, expected)
    assert_same_weights(tmp_path / "run", folder, atol=2e-5)
    assert seen_together(tmp_path / "run", accumulation) == sorted_rows(expected["seen"])


def roles_of(batch: list[int]) -> tuple[list[int], list[int]]:
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def sorted_rows(batches) -> list[tuple[list[int], list[int]]]:
    """Per step, the rows of each role."""
    return [tuple(sorted(rows) for rows in roles_of(batch)) for batch in batches]


def seen_together(folder: Path, accumulation: int) -> list[tuple[list[int], list[int]]]:
    """Per step, the rows of each role over both ranks; asserts that the ranks had different ones."""
    ranks = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    steps = []
    for start in range(0, len(ranks[0]), accumulation):
        parts = [roles_of(batch) for rank in ranks for batch in rank[start : start + accumulation]]
        step = tuple(sorted(row for part in parts for row in part[role]) for role in range(2))
        assert len(set(step[0])) == len(step[0]), "two ranks trained on one forget row in the same step"
        steps.append(step)
    return steps


def test_two_processes_resume_where_they_stopped(start, tmp_path):
    # 8 rows in steps of 4: the third of six steps stands within the second epoch.
    settings = settings_of(start, save_strategy="steps", save_steps=3)
    whole = launch(settings, tmp_path / "whole", 2)
    resume = str(tmp_path / "whole" / "checkpoint-3")
    rest = launch(settings | {"resume": resume}, tmp_path / "rest", 2)
    assert (rest["world"], rest["wrapper"]) == (2, "DistributedDataParallel")
    assert rest["log"][-1]["step"] == 6
    for rank in range(2):
        seen = [json.loads((tmp_path / part / f"seen-{rank}.json").read_text()) for part in ("whole", "rest")]
        assert seen[1] == seen[0][3:]
    assert curve(rest) == curve(whole)
    assert_same_weights(tmp_path / "rest", tmp_path / "whole", atol=0)


def deepspeed(stage: int) -> dict:
    pytest.importorskip("deepspeed")
    zero = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    # Without `train_batch_size`: DeepSpeed would check it before it knows how many processes there are.
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


@pytest.mark.parametrize(
    ("stage", "adapter", "reference"),
    [
        (2, "none", "live"),
        (3, "none", "live"),
        (3, "none", "cache"),
        (3, "fresh", "adapter"),
        (3, "trained", "adapter"),
    ],
)
def test_deepspeed_equals_one_process_of_the_whole_batch(start, alone, tmp_path, stage, adapter, reference):
    settings = settings_of(start, adapter, reference=reference, deepspeed=deepspeed(stage))
    result = launch(settings, tmp_path / "run", 2)
    assert result["reference"] == reference
    assert result["world"] == 2
    assert result["kind"].endswith("DEEPSPEED")
    assert result["wrapper"] == "DeepSpeedEngine"
    if reference == "live":
        assert result["reference_wrapper"] == "DeepSpeedEngine"
    expected, folder = alone(adapter)
    assert_same_run(result, expected)
    assert_same_weights(tmp_path / "run", folder, atol=1e-4)


def test_a_zero3_checkpoint_loads_with_plain_transformers(start, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = settings_of(start, max_steps=1, deepspeed=deepspeed(3))
    launch(settings, tmp_path / "run", 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.get_input_embeddings().weight.shape == (100, 32)
    batch = AutoTokenizer.from_pretrained(tmp_path / "run")("secret 00 of Ada", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert (tmp_path / "run" / "README.md").exists()
