# SPDX-License-Identifier: Apache-2.0
"""The shipped accelerate configs start two processes that train to the losses and weights of one: every form, every
case of `distributed/cases.py`, all cases of a form in one launch.

Every test asserts how many processes there were and what wrapped the model: several launchers fall back to other forms
or to unconnected single processes, and end without an error.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_model, make_tokenizer
from safetensors.torch import load_file
from vilt import make_vilt


sys.path.append(str(ROOT / "tests" / "distributed"))

from cases import CASES, run_case


# form: accelerate config, distributed type, wrapper
FORMS = {
    "ddp": ("cpu", "MULTI_CPU", "DistributedDataParallel"),
    "zero2": ("zero2", "DEEPSPEED", "DeepSpeedEngine"),
    "zero3": ("zero3", "DEEPSPEED", "DeepSpeedEngine"),
    "fsdp2": ("fsdp2", "FSDP", "FSDPLlamaForCausalLM"),
}
REFERENCE_WRAPPERS = {
    "ddp": "LlamaForCausalLM",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPLlamaForCausalLM",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A model to start from, on disk."""
    folder = tmp_path_factory.mktemp("start")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    make_vilt().save_pretrained(folder / "vilt")
    make_model(attention_bias=True).save_pretrained(folder / "biased")
    return str(folder)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """Runs a case in this process, once."""

    @cache
    def alone(name: str) -> tuple[dict, Path]:
        folder = tmp_path_factory.mktemp("alone")
        result = run_case(CASES[name], start, folder)
        assert (result["world"], result["kind"]) == (1, "NO")
        return result, folder

    return alone


@pytest.fixture(scope="module")
def launched(start, tmp_path_factory):
    """Launches all cases in one form, once."""

    @cache
    def launched(form: str) -> Path:
        if form.startswith("zero"):
            pytest.importorskip("deepspeed")
        folder = tmp_path_factory.mktemp(form)
        config = ROOT / "hf_unlearn" / "accelerate_configs" / f"{FORMS[form][0]}.yaml"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
        # A cached reference is filled by the processes of this test, not found from another's.
        environment["HF_UNLEARN_CACHE"] = str(folder / "cache")
        words = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
        worker = ROOT / "tests" / "distributed" / "cases_worker.py"
        done = subprocess.run(
            [sys.executable, *words, str(worker), start, str(folder), "all"],
            env=clean | environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=580,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return folder

    return launched


def results_of(folder: Path, name: str) -> list[dict]:
    number = list(CASES).index(name)
    results = [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(2)]
    for result in results:
        assert "failed" not in result, result["failed"]
    return results


def named(wrapper: str, case) -> str:
    return wrapper.replace("LlamaForCausalLM", "ViltForQuestionAnswering") if case.classifier else wrapper


def curve(result: dict) -> dict[str, list[float]]:
    steps = [entry for entry in result["log"] if "forget/loss" in entry]
    # A quantile of two batches is none of both together.
    keys = [key for key in steps[0] if ("/" in key or key in ("loss", "grad_norm")) and not key.endswith("_p99")]
    return {key: [entry[key] for entry in steps] for key in keys}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = [p for p in (folder / "adapter_model.safetensors", folder / "model.safetensors") if p.exists()]
    # transformers saves ViLT's layer norms by their old names where it loaded them under ZeRO-3, and loads either.
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    tensors = load_file(path).items()
    return {re.sub("LayerNorm.(gamma|beta)", lambda name: old[name[0]], name): tensor for name, tensor in tensors}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_two_processes_train_as_one_does(form, name, launched, alone):
    folder, case = launched(form), CASES[name]
    if case.classifier and form == "fsdp2":
        with pytest.raises(AssertionError, match="FSDP: for causal language models, and this model is a classifier"):
            results_of(folder, name)
        return
    if case.whole and form != "ddp":
        with pytest.raises(AssertionError, match="reads a step's whole gradients, and DeepSpeed and FSDP hold"):
            results_of(folder, name)
        return
    first, second = results_of(folder, name)
    expected, place = alone(name)
    for result in (first, second):
        wrapper = FORMS[form][2].replace("Llama", "PeftModel") if case.adapter else named(FORMS[form][2], case)
        assert (result["world"], result["kind"], result["wrapper"]) == (2, FORMS[form][1], wrapper)
        for told in ("steps", "reference", "fused", "prefix", "best"):
            assert result[told] == expected[told], told
        assert (result["error"] is None) == (case.ends is None)
    # Where some layers are frozen, the reference is a copy of the others and runs in the policy, if that is whole.
    if first["reference"] == "live" and "trainable_modules" not in case.args:
        assert first["reference_wrapper"] == named(REFERENCE_WRAPPERS[form], case)
    half = case.args.get("bf16", False)
    curves = curve(first), curve(expected)
    assert curves[0].keys() == curves[1].keys()
    for key, values in curves[0].items():
        assert values == pytest.approx(curves[1][key], rel=0.05 if half else 2e-3, abs=1e-2 if half else 5e-5), key
    if case.ends is None:
        left, right = saved(folder / str(list(CASES).index(name))), saved(place)
        assert left.keys() == right.keys()
        for key in left:
            torch.testing.assert_close(left[key].float(), right[key].float(), rtol=0, atol=case.tolerance, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_the_case_alone_does_something(name, alone, start):
    # Or agreement with it says nothing.
    result, folder = alone(name)
    case = CASES[name]
    log = [entry[case.sinking] for entry in result["log"] if case.sinking in entry]
    assert log[-1] < log[0] - 0.5
    if case.ends is None and not case.adapter:
        before, after = saved(Path(start) / ("vilt" if case.classifier else "")), saved(folder)
        assert max((before[key] - after[key]).abs().max().item() for key in before) > 10 * case.tolerance
    if case.resume:
        assert [entry["step"] for entry in result["log"] if "loss" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("form", FORMS)
def test_all_processes_stop_together_on_a_loss_that_is_not_a_number(form, launched):
    folder = launched(form)
    number = list(CASES).index("not a number on one process")
    for result in results_of(folder, "not a number on one process"):
        assert result["steps"] == 4
        assert "at step 4 forget/loss became infinite or undefined" in result["error"]
        assert f"The last good checkpoint is {folder / str(number) / 'checkpoint-3'}." in result["error"]
    assert not (folder / str(number) / "checkpoint-4").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_signal_to_one_process_ends_all_after_a_checkpoint(form, launched):
    from hf_unlearn.training.checkpoints import last_whole

    folder = launched(form)
    for result in results_of(folder, "sigterm to one process"):
        assert (result["steps"], result["error"]) == (4, "143")
    place = folder / str(list(CASES).index("sigterm to one process"))
    assert last_whole(place) == str(place / "checkpoint-4")


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_checkpoint_loads_with_plain_transformers(form, launched):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = launched(form) / str(list(CASES).index("fused, cached reference"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape == (100, 32)
    batch = AutoTokenizer.from_pretrained(folder)("secret 00 of Ada", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert (folder / "README.md").exists()
