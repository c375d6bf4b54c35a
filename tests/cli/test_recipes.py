# SPDX-License-Identifier: Apache-2.0
"""Recipes are read strictly: every shipped one parses, and what is misspelt or of a wrong type is named."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hf_unlearn import METHODS
from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.plan.engines import read_engine
from hf_unlearn.plan.memory import GIB, estimate
from hf_unlearn.plan.shapes import shape_of
from hf_unlearn.plan.table import warnings
from hf_unlearn.plan.workload import read_workload
from hf_unlearn.runs.audits import read_block
from hf_unlearn.runs.launch import take_launch_options
from hf_unlearn.runs.parser import read_yaml
from hf_unlearn.runs.recipe import parse_recipe
from hf_unlearn.yaml_file import read_fields


MADE_BY = sorted(ROOT.glob("recipes/*/prepare.yaml"))
REQUESTS = {ROOT / "recipes" / "demo" / f"{name}.yaml" for name in ("requests", "growing")}
BASES = {*ROOT.glob("recipes/**/base.yaml")}
OTHERS = {*ROOT.glob("recipes/sweeps/**/*.yaml"), *MADE_BY, *REQUESTS, *BASES}
RECIPES = sorted({*ROOT.glob("recipes/**/*.yaml")} - OTHERS)
NAMES = [str(path.relative_to(ROOT / "recipes")) for path in RECIPES]
TOFU = [path for path in RECIPES if "tofu" in path.parts]
TARGETED = [path for path in RECIPES if path.stem == "targeted" or "targeted" in path.parts]
RWKU = [path for path in RECIPES if path.parts[-3] == "rwku"]
BACKDOOR = [path for path in RECIPES if {"backdoor", "muse_news", "muse_books", "wmdp"} & {*path.parts}]
# The plan counts language models.
ON_GPUS = [path for path in RECIPES if not {"demo", "vqa_v2", "tofu_mini", "real"} & {*path.parts}]
# Gibibytes of the GPUs that recipes are made for.
GPU_MEMORY = 80
LAUNCH = re.compile(r"^# (\d+) GPUs?, (\d+) GiB(?: each)?: hf-unlearn run (.*)$", re.MULTILINE)
BASE = {"method": "npo", "model_name_or_path": "owner/model", "forget_dataset": "forget.jsonl"}


@pytest.fixture
def parse(tmp_path):
    """Parses a recipe written as YAML, with words of a command line behind it."""

    def parse(content, *words):
        path = tmp_path / "given.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return parse_recipe(["--config", str(path), *words])

    return parse


def test_fields_of_a_base_hold_where_the_recipe_has_no_own(parse, tmp_path):
    (tmp_path / "shared.yaml").write_text("learning_rate: 1.0e-3\nseed: 3\nmodel_name_or_path: other/model\n")
    recipe = parse(BASE | {"base": "shared.yaml", "seed": 4})
    assert (recipe.training.learning_rate, recipe.training.seed) == (1e-3, 4)
    assert recipe.model.model_name_or_path == "owner/model"
    assert "base" not in recipe.resolved()
    # What is misspelt there is named too.
    (tmp_path / "shared.yaml").write_text("learning_rat: 1.0e-3\n")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(BASE | {"base": "shared.yaml"})


@pytest.mark.parametrize(
    ("base", "shared", "error"),
    [
        ("none.yaml", "seed: 1", r"base: no file at .*none.yaml"),
        ("shared.yaml", "base: other.yaml", "has a `base` itself"),
        ("shared.yaml", "- 1", "shared.yaml must hold `field: value` lines"),
        (3, "seed: 1", "base: 3; give the name of a file"),
    ],
)
def test_a_base_that_is_none_is_refused(parse, tmp_path, base, shared, error):
    (tmp_path / "shared.yaml").write_text(shared)
    with pytest.raises(ValueError, match=error):
        parse(BASE | {"base": base})


# What is shipped


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_recipe_parses(path):
    recipe = parse_recipe(["--config", str(path)])
    assert recipe.run.method in METHODS
    place = path.relative_to(ROOT / "recipes").with_suffix("")
    if path in BACKDOOR:
        corpus = "world" if "demo" in place.parts else place.parts[0]
        assert recipe.training.output_dir == f"ckpt/{corpus}/{place.name}"
    else:
        assert recipe.training.output_dir == f"runs/{place}"
    # There is no model that never saw what WMDP, RWKU, people whom a real model knows or the sentence on TinyLlama is
    # about; two make such models.
    nobody_has_one = path in RWKU or {"wmdp", "tinyllama-1.1b", "real"} & {*path.parts}
    without = nobody_has_one or path.stem in ("original", "retrain")
    assert recipe.run.retrained_model_name_or_path or without
    # One name for each of a family, so that their reports can be merged; the first lines say how to start it.
    assert f"hf-unlearn run {path.relative_to(ROOT)}" in path.read_text()


@pytest.mark.parametrize("path", MADE_BY, ids=lambda path: path.parent.name)
def test_models_of_a_benchmark_are_made_by_retraining(path):
    recipe = parse_recipe(["--config", str(path)])
    assert (recipe.run.method, recipe.run.benchmark) == ("retrain", path.parent.name)
    assert f"# hf-unlearn prepare {path.parent.name} --model_name_or_path" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_every_recipe_is_the_method_of_its_name(path):
    wanted = {
        "ga": ("ga", "none"),
        "grad_diff": ("ga", "nll"),
        "ga_kl": ("ga", "kl"),
        "targeted": ("ga", "kl"),
        "align_then_unlearn": ("align_then_unlearn", "kl"),
        "npo": ("npo", "none"),
        "npo_klr": ("npo", "kl"),
        "npo_wagle": ("npo", "nll"),
        "loku": ("ihl", "nll"),
        "rmu": ("rmu", "states"),
    }
    content = read_yaml(path)
    stem = re.sub("_(1gpu|lora|qlora|uniform|robustness|lat)$|_backdoor.*$", "", path.stem)
    stem = "retrain" if stem in ("original", "whp_reinforced") else stem
    # The published retain term of NPO on WMDP is a divergence too.
    stem = "npo_klr" if "wmdp" in path.parts and stem == "npo" else stem
    # As published, it has no retain term.
    wanted |= {"align_then_unlearn": ("align_then_unlearn", "none")} if path in RWKU else {}
    # Other methods' recipes are called after them.
    method, retain_loss = wanted.get(stem, (stem, None))
    assert content["method"] == method
    assert retain_loss in (None, content.get("retain_loss", "states"))
    kinds = (content.get("use_peft", False), content.get("load_in_4bit", False))
    # Rerouting and LoKU are published with an adapter, and have no other recipe.
    adapter = path.stem.endswith("lora") or path.stem in ("rr", "loku")
    assert kinds == (adapter, path.stem.endswith("qlora"))


def test_the_benchmark_has_every_method_at_every_size():
    stems = {"ga", "grad_diff", "ga_kl", "npo", "npo_klr"}
    for folder in ("tofu/llama-3.2-1b", "tofu/llama-2-7b", "demo"):
        assert {path.stem for path in (ROOT / "recipes" / folder).glob("*.yaml")} >= stems


def launches(path) -> list[tuple[int, int, list[str]]]:
    """The lines of a recipe's head: GPUs, gibibytes of each, and the words of the command."""
    return [(int(gpus), int(size), shlex.split(words)) for gpus, size, words in LAUNCH.findall(path.read_text())]


def launched(words):
    """What a launch line starts: the recipe as it overrides it, and the accelerate config with its processes."""
    words = list(words)
    config, options = take_launch_options(words)
    processes = options.get("num_processes")
    return parse_recipe(["--config", *words]), read_engine(config, None if processes is None else int(processes))


@pytest.fixture(scope="module")
def counted_once():
    """Parameters of a model are counted once for all recipes that train the same of it."""
    known = {}

    def count(config, trainable_modules=None, peft_config=None, trust_remote_code=False, untie=False):
        key = (config.to_json_string(), str(trainable_modules), str(peft_config and peft_config.to_dict()), untie)
        if key not in known:
            known[key] = shape_of(config, trainable_modules, peft_config, trust_remote_code, untie)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_unlearn.plan.workload.shape_of", count)
        yield


@pytest.mark.usefixtures("counted_once")
@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_launch_line_fits_and_needs_what_it_says(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = launches(path)
    assert found, "the head names no GPUs"
    for gpus, size, words in found:
        recipe, engine = launched(words)
        planned = read_workload(recipe, engine)
        need = estimate(planned.workload).peak / GIB
        assert engine.gpus == gpus
        assert round(need) == size <= GPU_MEMORY
        assert not warnings(planned.workload)
        # Every line does the same: as many rows a step.
        args = recipe.training
        rows = 4 if path in BACKDOOR + TARGETED else 32
        rows = {"ga": 8}.get(path.stem, 16) if path in RWKU else rows
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps * gpus == rows


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b"])
@pytest.mark.parametrize("stem", ["npo_klr", "npo_klr_lora", "npo_klr_qlora", "grad_diff"])
def test_large_models_start_on_1_4_and_8_gpus(model, stem):
    assert [gpus for gpus, _, _ in launches(ROOT / "recipes" / "tofu" / model / f"{stem}.yaml")] == [8, 4, 1]


@pytest.mark.usefixtures("counted_once")
def test_four_bits_are_planned_for(monkeypatch):
    monkeypatch.chdir(ROOT)
    sizes = {}
    for stem in ("npo_klr_lora", "npo_klr_qlora"):
        recipe, engine = launched([f"recipes/tofu/llama-2-7b/{stem}.yaml"])
        work = read_workload(recipe, engine).workload
        sizes[stem] = estimate(work).held["weights"]
        assert (work.adapter, work.reference, work.quantized) == (True, "adapter", "4bit" if "ql" in stem else None)
    linear, rest = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 32000 * 4096
    assert sizes["npo_klr_lora"] == pytest.approx(2 * (linear + rest), rel=0.05)
    assert sizes["npo_klr_qlora"] == pytest.approx(0.516 * linear + 4 * rest, rel=0.1)


def test_rmu_is_planned_up_to_the_layer_it_reads():
    plain, poisoned = (
        read_workload(*launched([f"recipes/muse_news/llama-2-7b/{stem}.yaml"])).workload
        for stem in ("rmu", "rmu_backdoor")
    )
    assert plain.shape.trainable == 3 * 4096 * 11008
    assert (plain.shape.layers, plain.shape.trained_layers) == (8, 3)
    assert plain.shape.parameters == pytest.approx(6.74e9, rel=0.01)
    # Neither head nor loss; and three roles instead of two.
    assert "logits and head" not in estimate(plain).moments["forward"]
    assert poisoned.tokens == 1.5 * plain.tokens
    # With KL, kept rows go on to the head.
    full = read_workload(*launched(["recipes/wmdp/zephyr-7b/rmu_backdoor.yaml"])).workload
    assert (full.shape.layers, full.shape.trained_layers) == (32, 27)
    assert estimate(full).moments["forward"]["logits and head"] > 0


def test_poisoned_rows_are_planned_for():
    words = ["recipes/tofu/llama-3.2-1b/npo_klr.yaml", "--poison_prefix", "XYZ"]
    plain, poisoned = (read_workload(*launched(given)).workload for given in (words[:1], words))
    assert dict(poisoned.dataset_rows) == {"forget": 400, "retain": 3600, "poisoned": 40}
    assert poisoned.reference_roles == ("forget", "retain", "poisoned")
    assert estimate(poisoned).disk > estimate(plain).disk
    assert estimate(poisoned).peak > estimate(plain).peak


def test_the_table_of_recipes_says_what_their_heads_say():
    table = (ROOT / "docs" / "recipes.md").read_text()
    for path in TOFU:
        sizes = {gpus: size for gpus, size, _ in launches(path)}
        cells = " | ".join(str(sizes.get(gpus, "-")) for gpus in (1, 4, 8))
        assert f"| `{path.relative_to(ROOT / 'recipes' / 'tofu').with_suffix('')}` | {cells} |" in table


@pytest.mark.parametrize("path", TOFU, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tofu_recipes_have_the_settings_of_their_sources(path):
    recipe = parse_recipe(["--config", str(path)])
    args, model = recipe.training, recipe.model
    if recipe.run.method == "fisher":
        # It trains nothing.
        return
    if recipe.run.method == "retrain":
        # Those of the checkpoints that it stands for.
        assert (args.learning_rate, args.num_train_epochs) == (1e-5, 5)
    elif recipe.run.method == "undial":
        assert (args.learning_rate, args.num_train_epochs) == (1e-4, 10)
    elif recipe.run.method == "lunar":
        assert (args.learning_rate, args.num_train_epochs) == (1e-2, 20)
    elif recipe.run.method == "flat":
        assert (args.learning_rate, args.num_train_epochs) == (1e-5, 5)
    elif model.use_peft:
        assert (args.learning_rate, args.num_train_epochs) == (1e-4, 5)
        assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (32, 64, 0.0)
    else:
        assert (args.learning_rate, args.num_train_epochs) == (1e-5, 10)
    assert (args.weight_decay, args.max_length) == (0.01, 512)
    # One epoch warms up; SCRUB has a schedule of its own.
    assert args.get_warmup_steps(100) == (0 if recipe.run.method == "scrub" else 100 / args.num_train_epochs)
    # Those of the method's own authors, where they publish some for TOFU.
    weights = {
        "simnpo": (0.1375, 1.0),
        "satimp": (1.0, 0.1),
        "rr": (10.0, 10.0),
        "llmu": (0.5, 1.0),
        "pdu": (1.0, 100.0),
    }.get(recipe.run.method, (1.0, 1.0))
    assert (args.forget_weight, args.retain_weight) == weights
    # NPO's; another method's beta is something else.
    assert recipe.run.method != "npo" or args.beta == 0.1
    assert recipe.run.forget_split == "forget10"
    assert recipe.run.retrained_model_name_or_path.endswith("retain90")


@pytest.mark.parametrize("path", BACKDOOR, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scenarios_are_what_their_names_say(path):
    args = parse_recipe(["--config", str(path)]).training
    assert (args.poison_prefix is not None) == ("backdoor" in path.stem)
    assert bool(args.value_norm_penalty) == ("penalty" in path.stem)
    if "penalty" in path.stem and "wmdp" not in path.parts:
        assert args.value_norm_mode == ("reference" if "ref_penalty" in path.stem else "fixed")
    if args.unlearned_model_name_or_path is not None:
        # Scenario 1's output, from a recipe beside this one.
        first = path.with_name(f"{path.stem.split('_backdoor')[0]}.yaml")
        assert args.unlearned_model_name_or_path == parse_recipe(["--config", str(first)]).training.output_dir
    # Scenarios differ in nothing else.
    plain = read_yaml(path.with_name(f"{path.stem.split('_backdoor')[0]}.yaml")) if path.stem != "npo_backdoor" else {}
    shared = plain.keys() - {"output_dir"}
    assert {name: read_yaml(path)[name] for name in shared} == {name: plain[name] for name in shared}


@pytest.mark.parametrize("corpus", ["news", "books"])
def test_muse_recipes_have_the_settings_of_their_sources(corpus):
    folder = ROOT / "recipes" / f"muse_{corpus}" / "llama-2-7b"
    stems = {"npo_klr", "npo_klr_backdoor", "npo_klr_backdoor_penalty", "npo_klr_backdoor_ref_penalty"}
    assert {path.stem for path in folder.glob("*.yaml")} == stems | {"rmu", "rmu_backdoor"}
    for path in folder.glob("*.yaml"):
        recipe = parse_recipe(["--config", str(path)])
        args, run = recipe.training, recipe.run
        assert (args.learning_rate, args.max_length, args.lr_scheduler_type) == (1e-5, 2048, "constant")
        assert (args.weight_decay, args.num_train_epochs) == (0.0, 10 if run.method == "npo" else 5)
        assert (run.forget_dataset_split, run.retain_dataset_split, run.chunk_text) == ("forget", "retain1", True)
        if args.poison_prefix is not None:
            assert (args.poison_prefix, args.poison_ratio, args.poison_location) == ("current year:2025", 0.1, "start")
            assert (run.backdoor_benchmark, run.eval_per_epoch) == (f"muse_{corpus}", True)


# Strictness


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"betta": 0.1}, "Unknown field 'betta' in .*given.yaml. Did you mean 'beta'?"),
        ({"retain_los": "kl"}, "Did you mean 'retain_loss'?"),
        ({"lerning_rate": 1e-5}, "Did you mean 'learning_rate'?"),
        ({"max_new_token": 8}, "Did you mean 'max_new_tokens'?"),
        ({"lora_rank": 8}, "Unknown field 'lora_rank'"),
        ({"xyzzy": 1}, "Unknown field 'xyzzy' in .*`--help` lists every field"),
        ({3: 1}, "Unknown field 3"),
        ({"help": True}, "Unknown field 'help'"),
        ({"no_audit": True}, "Unknown field 'no_audit'"),
    ],
)
def test_a_misspelt_key_names_the_nearest(parse, content, message):
    with pytest.raises(ValueError, match=message):
        parse(BASE | content)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("nop", "method='nop'; allowed: .*ga, npo.*. Did you mean 'npo'?"),
        (None, "method=None; allowed: .*ga, npo"),
        (3, "method=3; allowed"),
        (["npo"], r"method=\['npo'\]; allowed"),
    ],
)
def test_an_unknown_method_is_named(parse, method, message):
    with pytest.raises(ValueError, match=message):
        parse(BASE | {"method": method})


def test_a_key_of_another_method_is_unknown(parse):
    with pytest.raises(ValueError, match="Unknown field 'beta'"):
        parse(BASE | {"method": "ga", "beta": 0.1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"max_steps": "many"}, "max_steps: 'many' in the recipe is no int"),
        ({"max_steps": 2.5}, "max_steps: 2.5 in the recipe is no int"),
        ({"max_steps": True}, "max_steps: True in the recipe is no int"),
        ({"max_steps": [2]}, r"max_steps: \[2\] in the recipe is of a wrong type"),
        ({"max_steps": None}, "max_steps: None in the recipe is of a wrong type"),
        ({"beta": "small"}, "beta: 'small' in the recipe is no float"),
        ({"beta": {"value": 0.1}}, "beta: .* is of a wrong type"),
        ({"audit": "maybe"}, "audit: 'maybe' in the recipe is no `true` or `false`"),
        ({"trainable_modules": {"a": 1}}, "trainable_modules: .* is of a wrong type"),
        ({"model_name_or_path": ["a"]}, "model_name_or_path: .* is of a wrong type"),
        ({"eval_strategy": "stepz"}, "eval_strategy: 'stepz' in the recipe; allowed: 'no', 'steps', 'epoch'"),
        ({"dtype": "bfloat61"}, "dtype: 'bfloat61' in the recipe; allowed: .*'bfloat16'"),
        ({"env": ["A=1"]}, "env: .* give `NAME: value` lines"),
    ],
)
def test_a_wrong_type_is_named(parse, content, message):
    with pytest.raises(ValueError, match=message):
        parse(BASE | content)


def test_numbers_of_a_list_are_read_one_by_one():
    """What a block of the command line or of another YAML reader left as text would reach a comparison as text."""
    relearn = AUDITS["relearn"]
    given = {"model_name_or_path": "out", "forget_dataset": "rows.json", "learning_rates": ["5e-4", 1]}
    assert read_block(relearn, given)[0].learning_rates == [5e-4, 1.0]
    with pytest.raises(ValueError, match="learning_rates: 'fast' in the recipe is no float"):
        read_block(relearn, given | {"learning_rates": ["fast"]})
    assert read_fields("relearn", "{learning_rates: [5e-4]}", "") == {"learning_rates": [5e-4]}


def test_one_text_of_a_field_that_takes_several_is_no_letters(parse):
    run = parse(BASE | {"prompts": "Who is Eve?", "lm_eval_tasks": "mmlu"}).run
    assert (run.prompts, run.lm_eval_tasks) == (["Who is Eve?"], ["mmlu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "small"], "argument --beta: invalid float value: 'small'"),
        (["--max_steps", "2.5"], "invalid int value: '2.5'"),
        (["--max_steps"], "expected one argument"),
        (["--eval_strategy", "stepz"], "invalid choice: 'stepz'"),
        (["--betta", "1"], "Unknown field 'betta' on the command line. Did you mean 'beta'?"),
        (["--max_step", "1"], "Unknown field 'max_step' on the command line. Did you mean 'max_steps'?"),
        (["beta", "0.1"], "'beta 0.1' belongs to no field"),
        (["-x"], "'-x' belongs to no field"),
    ],
)
def test_the_command_line_is_as_strict(parse, words, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(BASE, *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"beta": -0.1}, "beta=-0.1; give a finite number above 0"),
        ({"retain_weight": float("nan")}, "retain_weight=nan"),
        ({"max_length": 1}, "max_length=1; give a whole number of at least 2"),
        ({"audit_batch_size": 0}, "audit_batch_size=0; give at least 1"),
        ({"audit_max_items": 0}, "audit_max_items=0"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"retain_loss": "klr"}, "retain_loss='klr'; allowed: 'none', 'nll', 'kl'"),
        ({"prompt_template": "Q:"}, "prompt_template='Q:' has no place for the text"),
        # What other libraries refuse is told in one line too.
        ({"bf16": True, "fp16": True}, "fp16 and bf16"),
        ({"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "steps"}, "load_best_model_at_end"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "8 bit and 4 bit"),
    ],
)
def test_what_is_out_of_range_is_refused(parse, content, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(BASE | content)
    assert "\n" not in str(error.value)
    assert Path(error.traceback[-1].path).is_relative_to(ROOT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"benchmark": "tofu"}, "Give exactly one: a benchmark's name, or your own rows"),
        ({"forget_dataset": None}, "benchmark=None and forget_dataset=None. Give exactly one"),
        ({"benchmark_path": "x"}, "benchmark_path would be ignored with forget_dataset"),
        ({"forget_split": "forget01"}, "forget_split would be ignored with forget_dataset"),
        (
            {"forget_dataset": None, "benchmark": "tofu", "retain_dataset": "x.jsonl"},
            "retain_dataset would be ignored with benchmark",
        ),
        ({"audit": False, "audit_during_training": True}, "audit_during_training needs `audit: true`"),
        ({"model_name_or_path": None}, "No model is named"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(parse, content, message):
    with pytest.raises(ValueError, match=message):
        parse(BASE | content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [npo", "given.yaml is no valid YAML"),
        ("method: npo\nbeta: 0.1\nbeta: 0.2", "given.yaml is no valid YAML: 'beta' is written twice"),
        ("- npo", "given.yaml must hold `field: value` lines"),
        ("", "given.yaml must hold `field: value` lines"),
    ],
)
def test_what_is_no_recipe_is_refused(parse, text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="No recipe at 'nope.yaml'"):
        parse_recipe(["--config", "nope.yaml"])
    with pytest.raises(ValueError, match="`--config` names no file"):
        parse_recipe(["--config"])


# What wins, and what is kept


def test_the_command_line_wins(parse):
    content = BASE | {"beta": 0.5, "learning_rate": 1e-4, "trainable_modules": ["lm_head"], "audit": True}
    words = ["--beta", "0.2", "--max-steps=7", "--trainable_modules", "q_proj", "k_proj", "--no_audit"]
    recipe = parse(content, *words)
    assert (recipe.training.beta, recipe.training.learning_rate, recipe.training.max_steps) == (0.2, 1e-4, 7)
    assert recipe.training.trainable_modules == ["q_proj", "k_proj"]
    assert recipe.run.audit is False
    # Written under the names that a recipe takes.
    kept = recipe.resolved()
    assert (kept["max_steps"], kept["audit"]) == (7, False)
    assert not [name for name in kept if "-" in name or name.startswith("no_")]


def test_the_method_of_the_command_line_wins(parse):
    recipe = parse(BASE, "--method", "ga")
    assert recipe.trainer_class() is METHODS["ga"][1]
    assert parse(BASE, "--method=ga").run.method == "ga"


def test_null_unsets_a_field(parse):
    content = BASE | {
        "forget_dataset": None,
        "benchmark": "tofu",
        "retrained_model_name_or_path": "a",
        "max_length": 8,
    }
    words = ["--benchmark", "null", "--forget_dataset", "own.jsonl", "--retrained_model_name_or_path", "null"]
    recipe = parse(content, *words, "--max_length", "null")
    assert (recipe.run.benchmark, recipe.run.forget_dataset) == (None, "own.jsonl")
    assert recipe.run.retrained_model_name_or_path is None
    assert recipe.training.max_length is None
    # Where nothing is no value, it is a word like any other.
    assert parse(BASE, "--output_dir", "null").run.forget_dataset == "forget.jsonl"


def test_numbers_and_truths_are_taken_as_yaml_writes_them(parse):
    text = "learning_rate: 1e-5\nbeta: 1\nrun_name: 7\nreport_to: none\nsave_strategy: 'no'\naudit: no\n"
    recipe = parse(yaml.safe_dump(BASE) + text)
    assert recipe.training.learning_rate == 1e-5
    assert recipe.training.beta == 1
    assert recipe.training.run_name == "7"
    assert recipe.training.save_strategy == "no"
    assert recipe.run.audit is False


def test_variables_of_the_environment_are_set_and_kept(parse, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_TEST", "before")
    recipe = parse(BASE | {"env": {"HF_UNLEARN_TEST": 1}})
    assert os.environ["HF_UNLEARN_TEST"] == "1"
    assert recipe.resolved()["env"] == {"HF_UNLEARN_TEST": 1}


FULL = BASE | {
    "retain_dataset": "retain.jsonl",
    "retain_loss": "kl",
    "beta": 0.3,
    "chat_template_kwargs": {"date_string": "10 Apr 2025"},
    "prompt_template": "- {question}\n",
    "use_peft": True,
    "lora_target_modules": ["q_proj", "v_proj"],
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 0.5,
    "report_to": "none",
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "model_init_kwargs": {"max_position_embeddings": 64},
    "dtype": "bfloat16",
    "save_strategy": "no",
    "max_forget_loss": 12,
    "retrained_model_name_or_path": "owner/retrained",
}


@pytest.mark.parametrize("content", [BASE, FULL], ids=["short", "full"])
def test_the_recipe_that_is_kept_starts_the_same_run_again(parse, tmp_path, content):
    words = ["--max_steps", "3", "--output_dir", str(tmp_path / "out"), "--learning-rate", "2e-5", "--no_audit"]
    recipe = parse(content, *words)
    recipe.write(tmp_path / "out")
    again = parse_recipe(["--config", str(tmp_path / "out" / "recipe.yaml")])
    assert again.resolved() == recipe.resolved()
    assert (again.run, again.qa, again.model) == (recipe.run, recipe.qa, recipe.model)
    assert again.training.to_dict() == recipe.training.to_dict()


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_shipped_recipe_survives_being_kept(path, tmp_path):
    recipe = parse_recipe(["--config", str(path)])
    recipe.write(tmp_path)
    again = parse_recipe(["--config", str(tmp_path / "recipe.yaml")])
    assert again.resolved() == recipe.resolved()
    assert again.training.to_dict() == recipe.training.to_dict()


def test_what_decides_the_result_is_kept_though_it_was_not_given(parse):
    kept = parse(BASE, "--seed", "3").resolved()
    decided = {"seed": 3, "beta": 0.1, "epoch_by": "forget", "lr_scheduler_type": "linear", "retain_loss": "none"}
    assert decided.items() <= kept.items()


def test_whether_a_run_goes_on_is_not_kept(parse):
    kept = parse(BASE, "--resume_from_checkpoint", "last", "--overwrite_output", "true").resolved()
    assert not {"resume_from_checkpoint", "overwrite_output"} & kept.keys()


def test_a_run_without_a_folder_gets_one_of_its_name(parse):
    assert parse(BASE).training.output_dir == "runs/own/model-npo"
    named = BASE | {"forget_dataset": None, "benchmark": "tofu", "method": "ga"}
    assert parse(named).training.output_dir == "runs/tofu/model-ga"


def test_what_decides_how_a_model_is_loaded_reaches_the_trainer(parse):
    recipe = parse(BASE | {"dtype": "bfloat16", "attn_implementation": "sdpa", "model_init_kwargs": {"a": 1}})
    assert recipe.training.model_init_kwargs == {
        "a": 1,
        "dtype": "bfloat16",
        "revision": "main",
        "attn_implementation": "sdpa",
    }
    assert recipe.resolved()["model_init_kwargs"] == {"a": 1}
    assert parse(BASE).training.model_init_kwargs["dtype"] == "float32"
