# SPDX-License-Identifier: Apache-2.0
"""The recipes for RWKU, from start to report: on a tiny Phi-3 with other people, and on RWKU in small."""

from pathlib import Path

import pytest
import torch
from align_encoder import make_encoder
from conftest import ROOT, make_tokenizer
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from hf_unlearn.cli.main import main
from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.worlds.rwku.fixture import write_fixture
from hf_unlearn.runs.recipe import parse_recipe


RECIPES = ROOT / "recipes"
WORDS = {
    "ga": ["--learning_rate", "1e-3"],
    "npo": ["--learning_rate", "1e-3", "--bf16", "false"],
    "align_then_unlearn": [
        *["--first_align_steps", "2", "--align_steps", "1", "--unlearn_steps", "2", "--thresholds", "0.5", "-0.9"],
        *["--head_size", "16", "--head_layers", "1", "--head_heads", "2", "--window_tokens", "2", "--layer_id", "1"],
    ],
}


@pytest.fixture(scope="module")
def phi3(tmp_path_factory) -> Path:
    """A random Phi-3, whose queries, keys and values are one matrix."""
    path = tmp_path_factory.mktemp("phi3")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Phi3Config(vocab_size=100, **sizes, num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    Phi3ForCausalLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    write_fixture(path / "rwku" / "All")
    make_encoder(path / "encoder")
    return path


def words_of(method: str, phi3: Path, output_dir: Path) -> list[str]:
    words = ["--config", str(RECIPES / "rwku" / "phi-3-mini" / f"{method}.yaml"), *WORDS[method]]
    if method == "align_then_unlearn":
        words += ["--concept", "Mislel Bolter", "--encoder_name_or_path", str(phi3 / "encoder")]
    else:
        words += ["--max_steps", "2"]
    words += ["--model_name_or_path", str(phi3), "--benchmark_path", str(phi3 / "rwku"), "--audit_max_items", "1"]
    words += ["--forget_targets", "Mislel Bolter", "--per_device_train_batch_size", "2", "--use_cpu", "true"]
    return [*words, "--output_dir", str(output_dir), "--disable_tqdm", "true", "--attn_implementation", "eager"]


@pytest.mark.parametrize("method", WORDS)
def test_a_recipe_for_phi3_runs_to_its_report(method, phi3, tmp_path):
    report = unlearn(parse_recipe(words_of(method, phi3, tmp_path / "run")), show=False)
    target, unlearned = report["models"]
    assert (target["kind"], unlearned["kind"], report["suite"]) == ("target", "unlearned", "rwku")
    for model in report["models"]:
        assert {"forget/rouge", "retain/rouge", "forget_members/loss", "fluency/entropy"} <= set(model["metrics"])
    before = AutoModelForCausalLM.from_pretrained(phi3).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for layer in range(2):
        assert f"model.layers.{layer}.self_attn.qkv_proj.weight" in moved
    # What is above the layer that the head reads does not train.
    assert ("model.layers.2.self_attn.qkv_proj.weight" in moved) == (method != "align_then_unlearn")


def test_a_run_must_name_its_corpus(phi3, tmp_path, capsys):
    words = words_of("ga", phi3, tmp_path / "run")
    assert main(["run", *words, "--forget_split", "null"]) == 2
    assert "benchmark='rwku' has several corpora to train on. Name one as `forget_split`" in capsys.readouterr().err
    assert main(["run", *words, "--forget_targets", "Mislel"]) == 2
    assert "RWKU has no target 'Mislel' among its 16. Did you mean 'Mislel Bolter'?" in capsys.readouterr().err


def test_the_two_models_have_the_same_recipes():
    for method in WORDS:
        phi, llama = (
            parse_recipe(["--config", str(RECIPES / "rwku" / model / f"{method}.yaml")])
            for model in ("phi-3-mini", "llama-3-8b")
        )
        assert (phi.run.forget_split, llama.run.forget_split) == ("train_positive_phi3", "train_positive_llama3")
        # Published rates; only NPO's is one at which bfloat16 weights move.
        rate = {"ga": 6e-8, "npo": 2e-6, "align_then_unlearn": 3e-4}[method]
        assert phi.training.learning_rate == llama.training.learning_rate == rate
        assert bool(phi.training.bf16) == bool(llama.training.bf16) == (method == "npo")
        if method == "align_then_unlearn":
            assert phi.training.concept == phi.run.forget_targets
            assert phi.training.max_steps == llama.training.max_steps == 34_000


@pytest.mark.slow
def test_rwku_in_small_forgets_what_is_asked_in_other_words(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true", "--eval_strategy", "no"]
    recipe = RECIPES / "demo" / "rwku" / "npo_klr.yaml"
    report = unlearn(parse_recipe(["--config", str(recipe), *words, "--eval_on_start", "false"]), show=False)
    values = {m["kind"]: {name: one["value"] for name, one in m["metrics"].items()} for m in report["models"]}
    target, gold, ours = values["target"], values["retrained"], values["unlearned"]
    # Only biographies were trained on; blanks, questions and attacks were not.
    assert target["forget/rouge"] > 0.75
    assert gold["forget/rouge"] < 0.05
    assert ours["forget/rouge"] < 0.35
    for kind in ("forget_fb", "forget_qa", "forget_aa"):
        assert ours[f"{kind}/rouge"] < target[f"{kind}/rouge"] - 0.3
    assert min(model["retain/rouge"] for model in values.values()) > 0.85
    assert ours["forget_members/loss"] > target["forget_members/loss"] + 0.5
    assert ours["retain_members/loss"] < target["retain_members/loss"] + 0.2
