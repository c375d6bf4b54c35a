# SPDX-License-Identifier: Apache-2.0
"""The baselines in the embedded world, from recipe to report."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, changed, weights
from transformers import AutoModelForCausalLM

from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.benchmarks import resolve_model
from hf_unlearn.runs.recipe import parse_recipe


DEMO = ROOT / "recipes" / "demo"


def run(name: str, folder: Path, *words: str) -> dict[str, dict[str, float]]:
    """Metrics of every kind of model after `hf-unlearn run recipes/demo/NAME.yaml`."""
    silent = ["--disable_tqdm", "true", "--eval_strategy", "no", "--eval_on_start", "false"]
    recipe = parse_recipe(["--config", str(DEMO / f"{name}.yaml"), "--output_dir", str(folder), *silent, *words])
    models = unlearn(recipe, show=False)["models"]
    return {model["kind"]: {name: one["value"] for name, one in model["metrics"].items()} for model in models}


def test_the_worlds_start_is_what_its_models_began_as():
    from hf_unlearn.data.worlds.people import WorldConfig, build_world
    from hf_unlearn.data.worlds.people.training import initial_model

    world = build_world(progress=False)
    start = resolve_model("world/start")
    assert start == resolve_model("world/start") != resolve_model("world/target")
    found = weights(AutoModelForCausalLM.from_pretrained(start))
    again = weights(initial_model(world.tokenizer, world.metadata["seed"], WorldConfig(**world.metadata["config"])))
    assert not changed(found, again)
    assert changed(found, weights(AutoModelForCausalLM.from_pretrained(world.target)))


def test_the_audit_after_the_noise_is_of_the_noise(tmp_path):
    found = run("fisher", tmp_path, "--scales", "1.0", "--max_steps", "1", "--audit_max_items", "4")
    assert found["target"]["retain/exact_match"] == 1
    assert found["unlearned"]["retain/exact_match"] == 0


@pytest.mark.slow
def test_scrub_forgets_and_rewinds_to_rows_of_the_worlds_holdout(tmp_path):
    found = run("scrub", tmp_path)
    assert found["unlearned"]["forget/exact_match"] <= 0.1
    assert found["unlearned"]["forget_paraphrased/exact_match"] <= 0.1
    assert found["unlearned"]["retain/exact_match"] >= 0.98
    choice = json.loads((tmp_path / "rewind.json").read_text())
    assert choice["wanted"] > 4 > choice["forget"]["0"]


@pytest.mark.slow
# How much Fisher's noise leaves hangs on the processor that trained the world: 0 to a third was seen.
@pytest.mark.parametrize(("name", "left", "kept"), [("fisher", 0.5, 0.9), ("amnesiac", 0.15, 0.97)])
def test_fisher_and_relabelling_forget_what_was_asked(tmp_path, name, left, kept):
    found = run(name, tmp_path)
    assert found["unlearned"]["forget/exact_match"] <= left
    assert found["unlearned"]["retain/exact_match"] >= kept
