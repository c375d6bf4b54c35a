# SPDX-License-Identifier: Apache-2.0
"""From a sweep file to runs: what is expanded, what is one run, and every mistake told before anything starts."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from hf_unlearn.cli.main import main
from hf_unlearn.cli.sweep import resolve
from hf_unlearn.data.worlds.people import WorldConfig
from hf_unlearn.data.worlds.people.corpus import build_corpus
from hf_unlearn.sweep.expand import expand
from hf_unlearn.sweep.manifest import read_manifest
from hf_unlearn.sweep.spec import KEYS, read_spec
from hf_unlearn.sweep.targets import fill_in, read_targets


NPO = {"method": "npo", "model_name_or_path": "owner/model", "forget_dataset": "forget.jsonl", "use_cpu": True}
GA = {**NPO, "method": "ga"}
PEOPLE = [{"id": "1_Ann", "name": "Ann Lee", "aliases": ["Annie"]}, {"id": "2_Bob", "name": "Bob, the builder"}]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Writes a sweep file beside two recipes, in the working folder."""
    monkeypatch.chdir(tmp_path)

    def sweep(recipes=("npo.yaml",), **content) -> Path:
        for name, recipe in (("npo", NPO), ("ga", GA)):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"recipes": list(recipes), **content}))
        return path

    return sweep


@pytest.fixture
def runs_of(sweep, tmp_path):
    def runs_of(**content):
        return expand(read_spec(sweep(**content)), tmp_path / "out", resolve)

    return runs_of


@pytest.fixture
def refused(capsys, monkeypatch):
    """A sweep that must be refused with one line, before any process starts."""
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a process was started"))

    def refused(path, *words) -> str:
        assert main(["sweep", str(path), *words]) == 2
        said = capsys.readouterr().err
        assert said.count("hf-unlearn: error: ") == 1
        assert "Traceback" not in said
        return said.removeprefix("hf-unlearn: error: ")

    return refused


# What comes of it


def test_all_combinations_are_run(runs_of):
    runs = runs_of(
        recipes=["npo.yaml", "ga.yaml"], grid={"learning_rate": [1e-5, 1e-4], "max_steps": [1, 2, 3]}, seeds=[4, 5]
    )
    assert len(runs) == len({run.id for run in runs}) == len({run.name for run in runs}) == 2 * 2 * 3 * 2
    found = {(r.method, r.resolved["learning_rate"], r.resolved["max_steps"], r.resolved["seed"]) for r in runs}
    assert found == {(m, lr, n, s) for m in ("npo", "ga") for lr in (1e-5, 1e-4) for n in (1, 2, 3) for s in (4, 5)}
    assert runs[0].name == "npo-learning_rate=1e-05-max_steps=1-seed4"
    assert all(run.content["output_dir"] == str(run.folder) for run in runs)
    assert all(run.folder.name == run.name == run.content["run_name"] for run in runs)


def test_a_recipe_alone_is_one_run_with_its_own_seed(runs_of):
    (run,) = runs_of(fields={"seed": 7})
    assert (run.name, run.seed, run.setting, run.tags, run.target) == ("npo", 7, {}, [], None)


def test_a_recipe_may_have_settings_of_its_own(runs_of):
    own = {"recipe": "npo.yaml", "grid": {"beta": [0.2, 1.0]}}
    long = {"recipe": "npo.yaml", "name": "npo_long", "fields": {"max_steps": 9}}
    runs = runs_of(recipes=[own, long, "ga.yaml"], fields={"max_steps": 3})
    assert [run.name for run in runs] == ["npo-beta=0.2", "npo-beta=1", "npo_long", "ga"]
    assert [run.label for run in runs] == ["npo", "npo", "npo_long", "ga"]
    assert [run.resolved["max_steps"] for run in runs] == [3, 3, 9, 3]


def test_ablations_that_meet_are_one_run_with_both_tags(runs_of):
    alphas = [{"tag": f"ablation_weight_{a}", "fields": {"forget_weight": a, "beta": 0.5}} for a in (0.5, 1.0, 2.0)]
    betas = [{"tag": f"ablation_beta_{b}", "fields": {"forget_weight": 1.0, "beta": b}} for b in (0.1, 0.5)]
    runs = runs_of(runs=alphas + betas, tags=["paper"])
    assert [run.tags for run in runs] == [
        ["paper", "ablation_weight_0.5"],
        ["paper", "ablation_weight_1.0", "ablation_beta_0.5"],
        ["paper", "ablation_weight_2.0"],
        ["paper", "ablation_beta_0.1"],
    ]


def test_the_id_is_of_what_is_done_not_of_where(sweep, tmp_path):
    spec = read_spec(sweep(seeds=[0]))
    here, there = (expand(spec, tmp_path / name, resolve)[0] for name in ("here", "there"))
    assert here.id == there.id
    assert expand(read_spec(sweep(seeds=[1])), tmp_path, resolve)[0].id != here.id


def test_the_tuning_seed_is_marked(runs_of):
    assert [run.tuning for run in runs_of(seeds=[42, 0], tuning_seed=42)] == [True, False]


def test_targets_fill_in_the_recipe(runs_of, tmp_path):
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(one) + "\n" for one in PEOPLE))
    fields = {"forget_dataset": "data/{id}.jsonl", "prompt_template": "{question} ({name})"}
    runs = runs_of(fields=fields, targets="people.jsonl")
    assert [run.target for run in runs] == ["1_Ann", "2_Bob"]
    assert [run.content["forget_dataset"] for run in runs] == ["data/1_Ann.jsonl", "data/2_Bob.jsonl"]
    # What is no field of a target is somebody else's.
    assert runs[0].content["prompt_template"] == "{question} (Ann Lee)"
    assert [run.name for run in runs] == ["npo-1_Ann", "npo-2_Bob"]


def test_a_target_is_the_concept_of_align_then_unlearn():
    recipe = {"concept": ["Someone"], "concept_aliases": ["S."], "concept_descriptions": ["Somebody."], "seed": 1}
    ann, bob = read_targets(PEOPLE, [])
    assert fill_in(recipe, ann) == {"concept": ["Ann Lee"], "concept_aliases": ["Annie"], "seed": 1}
    # Another's aliases are not Bob's.
    assert fill_in(recipe, bob) == {"concept": ["Bob, the builder"], "seed": 1}
    given = {"concept": ["the person {name}"], "concept_aliases": "{aliases}"}
    assert fill_in(given, ann) == {"concept": ["the person Ann Lee"], "concept_aliases": ["Annie"]}
    with pytest.raises(ValueError, match="the target's 'aliases' is a list"):
        fill_in({"forget_dataset": "x/{aliases}.jsonl"}, ann)


def test_a_field_that_only_others_have_is_no_text():
    ann, bob = read_targets([{"id": "a", "file": "ann"}, {"id": "b"}], [])
    assert fill_in({"forget_dataset": "{file}.jsonl"}, ann) == {"forget_dataset": "ann.jsonl"}
    for value in ("{file}.jsonl", "{file}"):
        with pytest.raises(ValueError, match="forget_dataset: '.*', and target 'b' has no 'file', as others have"):
            fill_in({"forget_dataset": value}, bob)


def test_a_recipes_environment_is_no_other_runs(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SWEEP_TEST_VARIABLE", raising=False)
    path = sweep()
    (tmp_path / "npo.yaml").write_text(yaml.safe_dump({**NPO, "env": {"SWEEP_TEST_VARIABLE": "secret"}}))
    main(["sweep", str(path), "--slurm", "job.sh", "--output_dir", "out"])
    assert "SWEEP_TEST_VARIABLE" not in os.environ
    assert "secret" not in (tmp_path / "out" / "manifest.jsonl").read_text()


def test_a_recipe_is_read_as_a_run_reads_it(sweep, tmp_path, capsys):
    path = sweep()
    (tmp_path / "npo.yaml").write_text(yaml.safe_dump(NPO) + "beta: 0.1\nbeta: 0.2\n")
    assert main(["sweep", str(path), "--dry_run"]) == 2
    assert "'beta' is written twice" in capsys.readouterr().err


def test_a_dry_run_lists_and_writes_nothing(sweep, tmp_path, capsys):
    path = sweep(seeds=[0, 1])
    before = sorted(tmp_path.rglob("*"))
    assert main(["sweep", str(path), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "npo-seed0" in said
    assert "2 runs, 2 seeds. Nothing was started." in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_expands(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", str(path), "--dry_run", "--output_dir", "/nonexistent/sweep"]) == 0
    assert "Nothing was started" in capsys.readouterr().out
    assert f"hf-unlearn sweep {path.relative_to(ROOT)}" in path.read_text()


def test_the_people_of_the_example_are_the_worlds():
    sets, folder = build_corpus(0, WorldConfig()).sets, ROOT / "recipes" / "sweeps" / "people"
    for target in read_targets("targets.jsonl", [folder]):
        rows = [json.loads(line) for line in (folder / f"{target['id']}.jsonl").read_text().splitlines()]
        wanted = [row for row in sets["forget"] if row["person"] == target["name"]]
        assert len(rows) == 8
        assert rows == [{key: row[key] for key in rows[0]} for row in wanted]
    retain = [json.loads(line) for line in (folder / "retain.jsonl").read_text().splitlines()]
    known = {(row["question"], row["answer"]) for row in sets["retain"]}
    assert len(retain) == 96
    assert {(row["question"], row["answer"]) for row in retain} <= known


# Mistakes


BAD = {
    "unknown key": ({"sedes": [1]}, "unknown key 'sedes'. Did you mean 'seeds'?"),
    "wrong type": ({"seeds": 3}, "seeds: 3 is of a wrong type; give a list"),
    "no recipe": ({"recipes": []}, "no recipes are named"),
    "missing recipe": ({"recipes": ["no.yaml"]}, "no recipe at 'no.yaml'"),
    "same name": ({"recipes": ["npo.yaml", "npo.yaml"]}, "two recipes are called 'npo'"),
    "unknown entry key": ({"recipes": [{"recipe": "npo.yaml", "gird": {}}]}, "unknown key 'gird'. Did you mean"),
    "same run": (
        {"recipes": ["npo.yaml", {"recipe": "npo.yaml", "name": "other"}]}, "'npo' and 'other' are the same run"
    ),
    "seed twice": ({"seeds": [1, 1]}, "seeds=[1, 1]; give whole numbers, each once"),
    "seed no number": ({"seeds": ["a"]}, "give whole numbers"),
    "foreign tuning seed": ({"seeds": [1], "tuning_seed": 2}, "tuning_seed=2 is none of seeds=[1]"),
    "seed varied too": ({"seeds": [1], "grid": {"seed": [1, 2]}}, "`seed` is among the fields, and `seeds` is given"),
    "grid no list": ({"grid": {"beta": 1}}, "grid: beta: 1; give a list of values"),
    "grid empty": ({"grid": {"beta": []}}, "grid: beta: []; give a list of values"),
    "grid twice": ({"grid": {"beta": [1, 1]}}, "holds a value twice"),
    "grid of a folder": ({"grid": {"output_dir": ["a"]}}, "output_dir cannot be given"),
    "unknown field": ({"grid": {"betta": [1]}}, "npo.yaml. Did you mean 'beta'?"),
    "bad value": ({"fields": {"beta": -1}}, "npo: beta=-1"),
    "no audit": ({"fields": {"audit": False}}, "has `audit: false`, and a sweep is made of audits"),
    "run without tag": ({"runs": [{"fields": {}}]}, "give `tag`"),
    "tag twice": ({"runs": [{"tag": "a", "fields": {"beta": b}} for b in (1, 2)]}, "are not all different"),
    "unknown rule": ({"select": "the best"}, "select: 'the best' is no rule. Give `last`, `first forget <= X"),
    "rule of a method": ({"select": {"rule": "last", "npo": "last"}}, "or `rule`, `forget` and `utility`"),
    "unknown slurm key": ({"slurm": {"gpus": 1}}, "slurm: unknown key 'gpus'. Did you mean 'cpus'?"),
    "equal ids": ({"targets": [{"id": "a"}, {"id": "a"}]}, "two targets have the id 'a'"),
    "comma": ({"targets": [{"id": "Smith, J."}]}, "id='Smith, J.' holds a comma, a path separator or a space"),
    "separator": ({"targets": [{"id": "../a"}]}, "id='../a' holds a comma, a path separator or a space"),
    "no id": ({"targets": [{"name": "Ann"}]}, "target 1: id=None. Give each target an `id`"),
    "aliases no list": ({"targets": [{"id": "a", "aliases": "b"}]}, "aliases='b'; give a list of texts"),
    "no targets file": ({"targets": "no.yaml"}, "targets: no file 'no.yaml'"),
    "targets that change nothing": ({"targets": [{"id": "a"}, {"id": "b"}]}, "'a' and 'b' come to the same run"),
    "unknown privacy field": ({"privacy": {"fpr": [0.1]}}, "privacy: Unknown field 'fpr'"),
    "privacy without rows": ({"privacy": {}}, "privacy: No non-members are named"),
    "privacy of models": ({"privacy": {"models": ["x"]}}, "privacy: models cannot be given"),
    "no such launch": ({"accelerate_config": "nope"}, "No accelerate config 'nope'"),
    "no time": ({"retrained_seconds": 0}, "retrained_seconds=0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_before_anything_starts(sweep, refused, tmp_path, case):
    content, message = BAD[case]
    assert message in refused(sweep(**content), "--output_dir", "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_is_not_there_is_named(refused, tmp_path):
    assert "No sweep file at 'nope.yaml'" in refused("nope.yaml")
    (tmp_path / "bad.yaml").write_text("recipes: [")
    assert "is no valid YAML" in refused(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    assert f"must hold `key: value` lines: {', '.join(KEYS)}" in refused(tmp_path / "list.yaml")


def test_processes_that_make_no_sense_are_named(sweep, refused):
    assert "--jobs 0; give at least 1" in refused(sweep(), "--jobs", "0")
    assert "--gpus 0,0" in refused(sweep(), "--gpus", "0,0")
    assert "Leave out one of them" in refused(sweep(accelerate_config="zero3"), "--jobs", "2")


def test_a_number_means_the_run_of_the_manifest(sweep, refused, tmp_path, capsys):
    main(["sweep", str(sweep(seeds=[0, 1])), "--slurm", "job.sh", "--output_dir", "out"])
    capsys.readouterr()
    assert [row["name"] for row in read_manifest(tmp_path / "out")[0]] == ["npo-seed0", "npo-seed1"]
    assert "there are 2 runs, counted from 0" in refused(tmp_path / "sweep.yaml", "--only", "2", "--output_dir", "out")
    assert "no run has this name or id" in refused(tmp_path / "sweep.yaml", "--only", "x", "--output_dir", "out")
    changed = sweep(seeds=[1, 0])
    assert "the sweep file has changed since" in refused(changed, "--only", "0", "--output_dir", "out")
    assert main(["sweep", str(changed), "--only", "npo-seed1", "--output_dir", "out", "--dry_run"]) == 0


def test_a_folder_of_another_run_is_left_alone(sweep, refused, tmp_path, capsys):
    path = sweep(fields={"max_steps": 1})
    folder = tmp_path / "out" / "runs" / "npo"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**resolve({**NPO, "max_steps": 2}, Path("npo.yaml"))[1]}))
    said = refused(path, "--output_dir", "out")
    assert "holds another run, which differs in max_steps" in said
    assert [file.name for file in folder.iterdir()] == ["recipe.yaml"]


def test_help_is_light():
    code = "import sys; from hf_unlearn.cli.sweep import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'yaml', 'matplotlib', 'scipy'} & {*sys.modules}, sys.modules"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_words_of_the_command_line_are_fields_of_every_run(sweep, capsys, tmp_path):
    path = sweep(("npo.yaml", "ga.yaml"), fields={"max_length": 64}, slurm={})
    words = ["--max_length", "32", "--learning_rate=5e-4", "--forget_dataset", "other file.jsonl"]
    main(["sweep", str(path), *words, "--slurm", "job.sh"])
    runs, _ = read_manifest(tmp_path / "runs/sweeps/sweep")
    assert len(runs) == 2
    for run in runs:
        given = run["resolved"]
        assert (given["max_length"], given["learning_rate"]) == (32, 5e-4)
        assert given["forget_dataset"] == "other file.jsonl"
    # Each task of an array reads the file anew.
    assert (
        "--max_length 32 --learning_rate=5e-4 --forget_dataset 'other file.jsonl'" in (tmp_path / "job.sh").read_text()
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--learning_rate", "1e-3"], "the sweep file varies it"),
        (["--max_length"], "no value"),
        (["--beta", "0.1", "--beta", "0.2"], "given twice"),
        (["sixty", "--max_length", "64"], "belongs to no field"),
        (["--output_dirs", "here"], "output_dirs"),
        (["--seed", "1"], "seed"),
    ],
)
def test_words_that_no_run_can_have(sweep, refused, words, told):
    path = sweep(grid={"learning_rate": [1e-4, 1e-5]}, seeds=[0, 1])
    assert told in refused(path, *words, "--dry_run")
