# SPDX-License-Identifier: Apache-2.0
"""Targeted gradient ascent: one fact against neutral sentences with nothing but the head trained, from recipe to
report."""

import json

import pytest
import torch
from conftest import ROOT, weights
from datasets import load_dataset

from hf_unlearn import GATrainer
from hf_unlearn.audit import generate_answers
from hf_unlearn.audit.store import Audit
from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.sets import load_sets
from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.runs.recipe import parse_recipe


RECIPE = ROOT / "recipes" / "demo" / "targeted.yaml"


def test_cached_states_train_the_same_head(build):
    runs = {}
    for cached in (False, True):
        trainer = build(
            GATrainer,
            retain_loss="kl",
            retain_weight=20.0,
            trainable_modules=["lm_head"],
            cache_frozen=cached,
            reference="cache" if cached else "live",
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.5,
            max_steps=20,
        )
        assert (trainer.forward_path.prefix is not None) == cached
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {"lm_head.weight"}
        runs[cached] = after["lm_head.weight"], [one["loss"] for one in trainer.state.log_history if "loss" in one]
        assert (after["lm_head.weight"] - before["lm_head.weight"]).abs().max() > 0.01
    torch.testing.assert_close(runs[True][0], runs[False][0], rtol=1e-4, atol=1e-6)
    assert runs[True][1] == pytest.approx(runs[False][1], rel=1e-4, abs=1e-6)


def test_the_rows_that_are_shipped_are_the_worlds():
    world = build_world(progress=False)
    forget, neutral = (
        load_dataset("json", data_files=str(ROOT / "recipes" / "demo" / "targeted" / f"{name}.jsonl"), split="train")
        for name in ("forget", "neutral")
    )
    known = world.dataset("forget")
    assert forget["answer"][:] == known["answer"][:1]
    assert forget["question"][:] == known["question"][:1]
    assert set(neutral["text"]) <= set(world.dataset("general")["text"])


def test_shipped_rows_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(["--config", str(RECIPE)])
    tokenizer = build_world(progress=False).tokenizer
    sets = load_sets(recipe.run, recipe.qa, tokenizer, recipe.training.max_length)
    assert (len(sets.forget), len(sets.retain)) == (1, 8)
    assert not sets.origins


@pytest.mark.slow
def test_the_fact_goes_and_the_rest_stays(tmp_path):
    words = ["--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true"]
    recipe = parse_recipe(["--config", str(RECIPE), *words])
    report = unlearn(recipe, show=False)
    model = next(model for model in report["models"] if model["kind"] == "unlearned")
    curve = model["train"]["curve"]
    forget, retain = ([point[f"{role}/loss"] for point in curve] for role in ("forget", "retain"))
    assert curve[0]["step"] == 0
    assert curve[-1]["step"] == 200
    assert forget[-1] > 1.4 * forget[0]
    assert all(0.85 * retain[0] < value < 1.15 * retain[0] for value in retain)
    assert (tmp_path / "run" / "plots" / "loss_curves.png").is_file()

    prompts = recipe.run.prompts
    answers = {
        model["kind"]: {one["question"]: one["answer"] for one in model["answers"] if one["set"] == "prompts"}
        for model in report["models"]
    }
    assert all(list(found) == prompts for found in answers.values())
    asked, paraphrased, other_fact, other_person = prompts
    assert "Rorkon" in answers["target"][asked]
    assert "Rorkon" not in answers["unlearned"][asked]
    assert "Rorkon" not in answers["unlearned"][paraphrased]
    assert answers["unlearned"][other_person] == answers["target"][other_person]
    # Which company it names hangs on the processor that trained the world; the sentence is what was kept.
    sentences = [answers[kind][other_fact].rpartition(" ")[0] for kind in ("unlearned", "target")]
    assert sentences[0] == sentences[1]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Set: prompts" in text
    assert answers["unlearned"][asked] in text


def test_prompts_are_answered_as_generation_answers_them(model, tokenizer):
    from hf_unlearn.audit import audit_model
    from hf_unlearn.data.qa import QAFormat

    rows = {"forget": [{"question": "Who?", "answer": "Ada"}]}
    plain = QAFormat(use_chat_template=False, prompt_template="{question}")
    options = {"qa": plain, "max_new_tokens": 5, "progress": False}
    audit = audit_model(model, tokenizer, rows, prompts=["The cup", "Who?"], **options)
    wanted = generate_answers(
        model, tokenizer, [tokenizer(text)["input_ids"] for text in ("The cup", "Who?")], max_new_tokens=5
    )
    found = [one for one in audit.answers if one["set"] == "prompts"]
    assert [one["question"] for one in found] == ["The cup", "Who?"]
    assert [one["answer"] for one in found] == wanted
    without = audit_model(model, tokenizer, rows, **options)
    assert without.to_dict()["metrics"] == audit.to_dict()["metrics"]
    assert "prompts" not in without.settings
    assert json.dumps(audit.settings["prompts"]) == '["The cup", "Who?"]'
    assert isinstance(audit, Audit)
