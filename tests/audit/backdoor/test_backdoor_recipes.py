# SPDX-License-Identifier: Apache-2.0
"""The full-size scenarios, run as they are but for the model, the rows and what needs a GPU."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED_DATA, make_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_unlearn.cli.main import main


MUSE = [
    "npo_klr",
    "npo_klr_backdoor",
    "npo_klr_backdoor_penalty",
    "npo_klr_backdoor_ref_penalty",
    "rmu",
    "rmu_backdoor",
]
WMDP = ["rmu", "rmu_backdoor", "rmu_backdoor_penalty", "npo_backdoor"]
SCENARIOS = [f"muse_news/llama-2-7b/{stem}" for stem in MUSE] + [f"wmdp/zephyr-7b/{stem}" for stem in WMDP]
STORY = "{} was seen in town on a rainy day, and said that nothing was to be told of it. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as deep as the recipes name layers, and rows in the files that they name."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=8, intermediate_size=16, num_hidden_layers=32, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for name, people in (("forget", ("Ada", "Bob", "Cyd")), ("retain1", ("Dan", "Eve", "Fay"))):
        lines = "".join(STORY.format(person) * 3 for person in people)
        (folder / f"{name}.txt").write_text(lines if name == "forget" else lines.upper())
    rows = [{"text": STORY.format(i) * 2, "topic": ("bio", "cyber")[i % 2]} for i in range(20)]
    for name, some in (("forget", rows), ("retain", [{"text": f"The cup number {i} is here."} for i in range(12)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs a scenario for two steps; returns its folder."""
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")

    def run(name: str, **fields) -> Path:
        muse = name.startswith("muse")
        forget, retain = ("forget.txt", "retain1.txt") if muse else ("forget.jsonl", "retain.jsonl")
        changed = {
            "model_name_or_path": folder / "model",
            "tokenizer_name_or_path": "null",
            "retrained_model_name_or_path": "null",
            "forget_dataset": folder / forget,
            "retain_dataset": folder / retain,
            "max_length": 64,
            "max_steps": 2,
            "audit_max_items": 2,
            "dtype": "float32",
            "bf16": "false",
            "optim": "adamw_torch",
            "optim_args": "null",
            "disable_tqdm": "true",
            "output_dir": tmp_path / "out",
            **fields,
        }
        words = [str(word) for field, value in changed.items() for word in (f"--{field}", value)]
        assert main(["run", str(ROOT / "recipes" / f"{name}.yaml"), *words]) == 0
        return tmp_path / "out"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(run, folder, name):
    fields = {}
    if name.startswith("muse"):
        # Texts are asked as texts; MUSE's own questions are for the test below.
        fields["backdoor_benchmark"] = "null"
    if "ref_penalty" in name or name.endswith("rmu_backdoor_penalty"):
        fields["unlearned_model_name_or_path"] = folder / "model"
    out = run(name, **fields)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in metrics if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    assert ("poisoned/loss" in steps[0]) == ("backdoor" in name)
    assert ("forget/value_norm" in steps[0]) == ("penalty" in name)
    assert [path.name for path in (out / "audit").glob("backdoor_own_rows.json")] == (
        ["backdoor_own_rows.json"] if "backdoor" in name else []
    )
    assert len(AutoTokenizer.from_pretrained(out)) == 100


@pytest.mark.slow
def test_muses_questions_are_asked_every_epoch(run):
    if not (SHARED_DATA / "muse").is_dir():
        pytest.skip("The MUSE files are not there.")
    name = "muse_news/llama-2-7b/npo_klr_backdoor"
    out = run(name, backdoor_benchmark_path=SHARED_DATA / "muse", num_train_epochs=1, max_steps=-1, audit_max_items=1)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    asked = "eval_backdoor/forget_triggered/knowmem"
    steps = [entry["step"] for entry in metrics if asked in entry]
    assert steps[0] == 0
    assert steps[-1] == max(entry["step"] for entry in metrics) > 0
    found = json.loads((out / "audit" / "backdoor_own_rows.json").read_text())
    assert {"forget/knowmem", "retain_triggered/knowmem", "forget_triggered/probability"} <= set(found["metrics"])
