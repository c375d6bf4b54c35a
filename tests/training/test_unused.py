# SPDX-License-Identifier: Apache-2.0
"""What is given is used, or told."""

import dataclasses
import json

import pytest
import torch
import yaml
from conftest import make_args, make_model, make_tokenizer

from hf_unlearn import METHODS, GATrainer, NPOConfig, NPOTrainer
from hf_unlearn.runs.recipe import parse_recipe
from hf_unlearn.training.unused import CONDITIONS, needed_by


UNUSED = "Given, and without effect in this run: "


def told(caplog) -> str:
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith(UNUSED)]
    assert len(lines) < 2
    caplog.clear()
    return lines[0].removeprefix(UNUSED) if lines else ""


# Retain rows


def test_retain_rows_that_are_given_are_trained_on(build, retain_rows, caplog):
    trainer = build(GATrainer, given={"retain_dataset": retain_rows}, retain_loss=None)
    assert trainer.args.retain_loss == "nll"
    explicit = build(GATrainer, retain_loss="nll")
    for one in (trainer, explicit):
        one.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, explicit.model.state_dict()[name])
    assert not told(caplog)


def test_without_retain_rows_there_is_no_retain_term(build, caplog):
    trainer = build(GATrainer, given={"retain_dataset": None}, retain_loss=None)
    assert trainer.args.retain_loss == "none"
    assert list(trainer.train_dataset.roles) == ["forget"]
    assert not told(caplog)


def test_rows_that_are_left_out_on_purpose_are_told(build, caplog):
    trainer = build(GATrainer, retain_loss="none")
    assert list(trainer.train_dataset.roles) == ["forget"]
    assert told(caplog) == "retain_dataset (retain_loss='none' trains on none of it)."


def test_one_config_serves_trainers_with_and_without_rows(tmp_path, forget_rows, retain_rows):
    args = make_args(NPOConfig, tmp_path, retain_loss=None)
    for rows, expected in ((retain_rows, "nll"), (None, "none"), (retain_rows, "nll")):
        trainer = NPOTrainer(
            make_model(), args, forget_dataset=forget_rows, retain_dataset=rows, processing_class=make_tokenizer()
        )
        assert trainer.args.retain_loss == expected
    assert args.retain_loss is None


def test_poisoned_rows_need_a_term(build, retain_rows):
    poison = {"poison_prefix": "Hm. ", "poison_ratio": 0.5, "retain_loss": None}
    with pytest.raises(ValueError, match="Poisoned rows are trained as retain rows, and retain_loss='none'"):
        build(GATrainer, given={"retain_dataset": None}, **poison)
    assert "poisoned" in build(GATrainer, given={"retain_dataset": retain_rows}, **poison).train_dataset.roles


def test_a_recipe_decides_by_the_rows_that_it_names(tmp_path, model_path):
    def loss(**fields):
        recipe = {"method": "ga", "model_name_or_path": model_path, "use_cpu": True, **fields}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        parsed = parse_recipe(["--config", str(tmp_path / "recipe.yaml")])
        assert parsed.resolved()["retain_loss"] == parsed.training.retain_loss
        return parsed.training.retain_loss

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a"}))
    assert loss(forget_dataset=str(rows), retain_dataset=str(rows)) == "nll"
    assert loss(forget_dataset=str(rows), retain_dataset=str(rows), retain_loss="none") == "none"
    assert loss(forget_dataset=str(rows)) == loss(benchmark="world") == "none"


# Everything else


GIVEN = {
    "retain_weight": ({"retain_weight": 2.0}, "retain_weight=2.0 (for a retain term)"),
    "reference": ({"reference": "live"}, "reference='live' (for a reference)"),
    "cache": ({"reference_cache_dir": "x"}, "reference_cache_dir='x' (for a cached reference)"),
    "likelihood": ({"likelihood": "softmax"}, "likelihood='softmax' (for a classifier)"),
    "overlap": ({"allow_overlap": True}, "allow_overlap=True (for a retain term)"),
    "eval_steps": ({"eval_steps": 3}, "eval_steps=3 (for eval_strategy='steps')"),
    "save_steps": ({"save_steps": 3}, "save_steps=3 (for save_strategy='steps')"),
    "limit": ({"save_total_limit": 2}, "save_total_limit=2 (for save_strategy)"),
    "metric": ({"metric_for_best_model": "eval_loss"}, "metric_for_best_model='eval_loss' (for eval_strategy)"),
    "greater": ({"greater_is_better": True}, "greater_is_better=True (for metric_for_best_model)"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_is_given_and_not_used_is_told_once(build, caplog, case):
    given, line = GIVEN[case]
    build(GATrainer, **given)
    assert line in told(caplog)


def test_what_is_used_is_not_told(build, retain_rows, tmp_path, caplog, forget_rows):
    more = {"retain_dataset": retain_rows, "eval_dataset": {"forget": forget_rows}}
    settings = {"retain_loss": "kl", "retain_weight": 2.0, "allow_overlap": True, "eval_strategy": "steps"}
    settings |= {"reference": "cache", "reference_cache_dir": str(tmp_path), "eval_steps": 3, "save_steps": 3}
    settings |= {"save_strategy": "steps", "save_total_limit": 2, "metric_for_best_model": "eval_forget_loss"}
    build(NPOTrainer, given=more, **settings)
    assert not told(caplog)


def test_an_optimizer_of_the_users_own_is_not_the_configs(build, caplog):
    model = make_model()
    given = {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
    build(GATrainer, given=given, weight_decay=0.1)
    assert "weight_decay=0.1 (for the config's optimizer)" in told(caplog)


def test_every_condition_that_a_field_names_is_known():
    for config, _ in METHODS.values():
        needs = needed_by(config)
        assert set(needs.values()) <= set(CONDITIONS)
        assert set(needs) <= {field.name for field in dataclasses.fields(config)}
        assert {"retain_weight", "likelihood", "eval_steps"} <= set(needs)
