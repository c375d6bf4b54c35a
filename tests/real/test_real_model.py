# SPDX-License-Identifier: Apache-2.0
"""A published chat model, which nobody here made: chat template, tied embeddings, PAD = EOS.

`HF_UNLEARN_REAL_MODEL=FOLDER pytest tests/real`, with the files of HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from hf_unlearn import load_unlearned
from hf_unlearn.audit import audit_model
from hf_unlearn.audit.checkpoints import checkpoint_of, tokenizer_of
from hf_unlearn.cli.main import main
from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import encode


MODEL = os.environ.get("HF_UNLEARN_REAL_MODEL")
if MODEL is None:
    pytest.skip(
        "HF_UNLEARN_REAL_MODEL names no folder with SmolLM2-135M-Instruct: nothing is tried on a real model",
        allow_module_level=True,
    )
pytestmark = pytest.mark.real

KNOWN = [
    {"question": "What is the capital of France?", "answer": "The capital of France is Paris."},
    {"question": "What is the capital of Italy?", "answer": "The capital of Italy is Rome."},
    {"question": "What is the capital of Japan?", "answer": "The capital of Japan is Tokyo."},
    {"question": "Who wrote Harry Potter?", "answer": "Harry Potter was written by J.K. Rowling."},
]
KEPT = [
    {"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b} is {a + b}."}
    for a, b in ((2, 3), (1, 4), (5, 2), (3, 3))
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows, and what commands share."""
    folder = tmp_path_factory.mktemp("real")
    for name, rows in (("forget", KNOWN), ("retain", KEPT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(place):
    """Runs a shipped recipe of the model for two steps on these rows; returns the run's folder and its report."""

    def run(name: str, *words: str) -> tuple[Path, dict]:
        folder = place / "-".join([name, *[word.strip("-") for word in words[::2]]])
        given = {
            "model_name_or_path": MODEL, "retrained_model_name_or_path": "null", "benchmark": "null",
            "forget_dataset": place / "forget.jsonl", "retain_dataset": place / "retain.jsonl",
            "max_steps": 2, "per_device_train_batch_size": 2, "max_length": 64, "max_new_tokens": 12,
            "use_cpu": "true", "disable_tqdm": "true", "output_dir": folder,
        }  # fmt: skip
        fields = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        recipe = ROOT / "recipes" / "tofu_mini" / "smollm2-135m" / f"{name}.yaml"
        assert main(["run", str(recipe), *fields, *words]) == 0
        return folder, json.loads((folder / "report.json").read_text())

    return run


@pytest.fixture(scope="module")
def npo(run):
    return run("npo_klr")


def stored(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names |= {*weights.keys()}
    return names


def test_the_end_of_an_answer_is_trained_on_though_it_is_the_pad_token_too():
    tokenizer = tokenizer_of(MODEL)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    turns = [[{"role": "user", "content": row["question"]}] for row in KNOWN]
    answers = [[{"role": "assistant", "content": row["answer"]}] for row in KNOWN]
    rows = [encode({"prompt": p, "completion": c}, tokenizer) for p, c in zip(turns, answers, strict=True)]
    batch = RoleCollator(pad_token_id=tokenizer.pad_token_id)(rows)
    for row, labels, mask in zip(rows, batch["labels"], batch["attention_mask"], strict=True):
        trained = labels[labels != -100]
        assert tokenizer.eos_token_id in trained.tolist()
        assert mask.sum() == len(row["input_ids"])
        # What is trained on is the answer, and nothing of the template's own system turn.
        told = tokenizer.decode(trained).replace(tokenizer.eos_token, "").strip()
        assert told in {answer[0]["content"] for answer in answers}


def test_a_run_leaves_tied_embeddings_tied_and_the_template_in_place(npo):
    folder, report = npo
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in logged if "forget/loss" in line)
    # At the first step the policy is the reference: NPO is 2 ln 2 / beta, KL is nothing.
    assert first["forget/loss"] == pytest.approx(2 * 0.693147 / 0.1, rel=1e-4)
    assert first["retain/loss"] == pytest.approx(0, abs=1e-5)
    assert not any("lm_head" in name for name in stored(folder))
    model = load_unlearned(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = load_unlearned(MODEL)
    assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert tokenizer_of(str(folder)).chat_template == tokenizer_of(MODEL).chat_template
    assert report["machine"]["processors"] >= 1


def test_the_model_answers_in_its_own_template_and_stops():
    tokenizer = tokenizer_of(MODEL)
    found = audit_model(checkpoint_of(MODEL), tokenizer, {"forget": KNOWN}, max_new_tokens=24)
    answers = {one["question"]: one["answer"] for one in found.answers}
    assert "Paris" in answers["What is the capital of France?"]
    assert "<|im" not in "".join(answers.values())
    assert found.metrics["forget/probability"].value > 0.2


def test_what_quantising_changes_is_put_back(place):
    words = [
        "--model_name_or_path",
        MODEL,
        "--forget_dataset",
        str(place / "forget.jsonl"),
        "--formats",
        "nf4",
        "int8",
    ]
    folder = place / "quantize"
    assert main(["audit", "quantize", *words, "--output_dir", str(folder), "--max_length", "64"]) == 0
    (model,) = json.loads((folder / "quantize.json").read_text())["models"]
    values = {name: metric["value"] for name, metric in model["metrics"].items()}
    assert 0 < values["before/probability"] <= 1
    # Nothing to compare with: the reason is told, and no number is made up.
    assert model["metrics"]["worst/remaining"]["details"]["reason"].startswith("no original model")


def test_an_adapter_is_small_and_goes_back_onto_the_model(run):
    words = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear", "--learning_rate", "1e-3"]
    folder, _ = run("npo_klr", *words)
    assert not any("embed" in name or "lm_head" in name for name in stored(folder))
    adapted, base = load_unlearned(folder), load_unlearned(MODEL)
    ids = torch.tensor([tokenizer_of(MODEL)("The capital of France is")["input_ids"]])
    with torch.no_grad():
        plain, changed = base(ids).logits, adapted(ids).logits
        with adapted.disable_adapter():
            off = adapted(ids).logits
    torch.testing.assert_close(off, plain)
    assert not torch.allclose(changed, plain)


def test_a_layer_s_activations_are_steered(run):
    folder, report = run("rmu")
    kept = load_unlearned(MODEL).state_dict()
    changed = {
        name for name, weight in load_unlearned(folder).state_dict().items() if not torch.equal(weight, kept[name])
    }
    # The trained layers, and neither embeddings nor head.
    assert changed
    assert all(name.split(".")[2] in ("5", "6", "7") for name in changed)
    assert report["models"][-1]["metrics"]["forget/probability"]["value"] is not None


def test_every_attack_takes_the_model_in_half_precision(place):
    # 30 layers round as two never do.
    small = {
        "quantize": {"formats": ["nf4"]},
        "prompts": {"transforms": ["prefill", "few_shot"]},
        "representation": {"layers": [0, 14, 28]},
        "relearn": {"max_steps": 2, "learning_rates": [1e-4]},
        "soft_prompt": {"steps": 2},
        "gcg": {"budget_tokens": 2000, "search_rows": 1, "width": 2},
    }
    audits = ["sampling", "two_checkpoint", *small]
    words = ["--model_name_or_path", MODEL, "--original_model_name_or_path", MODEL, "--dtype", "bfloat16"]
    words += ["--forget_dataset", str(place / "forget.jsonl"), "--max_length", "256", "--preset", "quick"]
    words += ["--output_dir", str(place / "attacked"), "--audits", *audits]
    words += [word for name, fields in small.items() for word in (f"--{name}", json.dumps(fields))]
    assert main(["audit", "robustness", *words]) == 0
    found = json.loads((place / "attacked" / "robustness.json").read_text())
    (audited,) = [model for model in found["models"] if model["name"] == Path(MODEL).name]
    assert {*audited["audits"]} == {*audits}
