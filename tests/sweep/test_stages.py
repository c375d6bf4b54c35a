# SPDX-License-Identifier: Apache-2.0
"""Two stages: settings on the tuning seed, then the chosen one of each method on the other seeds; and the rule that
chooses the nearest to retrained among those that keep enough. What a run does is played."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from sweep_runs import FORGET, UTILITY, baseline, metric, run_of, sweep_of

from hf_unlearn import METHODS
from hf_unlearn.cli import sweep as command
from hf_unlearn.cli.main import main
from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.report.sweep.rules import read_rule
from hf_unlearn.report.sweep.tables import missing_lines
from hf_unlearn.sweep.expand import expand
from hf_unlearn.sweep.progress import DONE, state_of
from hf_unlearn.sweep.spec import read_spec


KEPT = "best forget s.t. utility >= target - 0.02"


def chosen(runs, **settings):
    """Rows of the table under the rule, by their variant; seed 0 is tuned on."""
    baselines = [baseline("target", 1.0, 0.86), baseline("retrained", 0.1, 0.9)]
    select = {"rule": KEPT, "forget": FORGET, "utility": UTILITY}
    table = tabulate(sweep_of(runs, baselines, select, tuning_seed=0, **settings))
    return [row.variant for row in table.of("result")], table


def both(label, beta, forget, utility, **more):
    return [run_of(label, forget, utility, seed=seed, setting={"beta": beta}, **more) for seed in (0, 1)]


# The rule


def test_the_nearest_to_retrained_is_chosen_among_those_that_keep_enough():
    # The retrained model shows 0.1: 0.0 is as far as 0.2, and 0.08 is nearer; what loses 0.03 is out.
    runs = [*both("npo", 1, 0.0, 0.86), *both("npo", 2, 0.08, 0.84), *both("npo", 3, 0.1, 0.83)]
    variants, table = chosen(runs)
    assert variants == ["beta=2"]
    assert "the nearest to the retrained model's" in table.rule
    assert "at least the target's less 0.02" in table.rule


def test_the_setting_is_chosen_by_the_tuning_seed_alone():
    runs = [*both("npo", 1, 0.1, 0.86), *both("npo", 2, 0.3, 0.86)]
    runs[0]["values"][FORGET], runs[1]["values"][FORGET] = 0.9, 0.1
    assert chosen(runs)[0] == ["beta=2"]


def test_of_p_values_the_largest_is_best():
    runs = [*both("npo", 1, 0.0, 0.86), *both("npo", 2, 0.0, 0.86)]
    for run, p in zip(runs, (0.01, 0.01, 0.4, 0.4), strict=True):
        run["metrics"]["forget_quality"] = metric(p, "higher")
        run["values"]["forget_quality"] = p
    select = {"rule": KEPT, "forget": "forget_quality", "utility": UTILITY}
    table = tabulate(sweep_of(runs, [baseline("target", 1.0, 0.86)], select, tuning_seed=0))
    assert [row.variant for row in table.of("result")] == ["beta=2"]


def test_a_method_that_keeps_too_little_shows_what_keeps_most_and_is_named():
    runs = [*both("npo", 1, 0.1, 0.86), *both("ga", 1, 0.1, 0.2), *both("ga", 2, 0.5, 0.3)]
    variants, table = chosen(runs)
    assert variants == ["beta=1", "beta=2"]
    assert table.unmet == ["ga"]
    assert missing_lines(sweep_of(runs), table) == (
        "- ga: nothing in it meets the rule: the setting that keeps most is shown"
    )


def test_a_rule_is_read_with_its_bound():
    assert (read_rule(KEPT, "x").kind, read_rule(KEPT, "x").bound) == ("kept", 0.02)


# The stages

# Rate to what a run shows of the forget and the retain rows.
SHOWN = {"ga": {1e-4: (0.9, 0.9), 1e-3: (0.0, 0.1)}, "npo": {1e-4: (0.5, 0.9), 1e-3: (0.1, 0.85)}}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep file and what was run by each call of the command; `broken` runs fail."""
    broken, worked = set(), []

    def work(runs, states, *_):
        waiting = [run for run in runs if states[run.name] != DONE]
        worked.append([run.name for run in waiting])
        for run in waiting:
            if run.name not in broken:
                finish(run)
        return 1 if any(run.name in broken for run in waiting) else 0

    def finish(run):
        forget, utility = SHOWN[run.label][run.setting["learning_rate"]]
        shown = {"target": (1.0, 0.86), "retrained": (0.1, 0.9), "unlearned": (forget, utility)}
        models = [
            {"name": kind, "kind": kind, "path": kind, "metrics": {FORGET: metric(f), UTILITY: metric(u, "higher")}}
            for kind, (f, u) in shown.items()
        ]
        models[0]["path"] = run.resolved["model_name_or_path"]
        about = {"schema_version": 1, "title": "t", "created": "c", "suite": "s", "versions": {}}
        run.folder.mkdir(parents=True)
        text = json.dumps({**about, "settings": {run.name: run.resolved}, "models": models})
        (run.folder / "report.json").write_text(text)
        assert state_of(run) == DONE

    monkeypatch.setattr(command, "_work", work)
    for name in ("ga", "npo"):
        fields = {"method": name, "model_name_or_path": "m", "forget_dataset": "f.jsonl", "report_to": "none"}
        fields |= {"retain_dataset": "r.jsonl", "retrained_model_name_or_path": "retrained"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    content = {"recipes": ["ga.yaml", "npo.yaml"], "grid": {"learning_rate": [1e-4, 1e-3]}, "seeds": [0, 1, 2]}
    content |= {"tuning_seed": 0, "stages": 2, "select": {"rule": KEPT, "forget": FORGET, "utility": UTILITY}}
    content |= {"output_dir": str(tmp_path / "out")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "sweep.yaml"), worked, broken


def test_only_the_chosen_setting_of_each_method_runs_with_the_other_seeds(sweep, tmp_path, capsys):
    file, worked, _ = sweep
    assert main(["sweep", file, "--dry_run"]) == 0
    assert "4 runs, 1 seeds" in (told := capsys.readouterr().out)
    assert "Then each method's chosen setting with the other seeds, of 8 that may be." in told
    assert main(["sweep", file]) == 0
    first = [f"{m}-learning_rate={r}-seed0" for m in ("ga", "npo") for r in ("0.0001", "0.001")]
    # Gradient ascent at the higher rate keeps too little; at the lower it forgets little, and is what there is.
    second = [f"{m}-learning_rate={r}-seed{s}" for m, r in (("ga", "0.0001"), ("npo", "0.001")) for s in (1, 2)]
    assert worked == [first, second]
    with (tmp_path / "out" / "table.csv").open() as rows:
        rows = [row for row in csv.DictReader(rows) if row["kind"] == "result"]
    assert [(row["recipe"], row["variant"], row["n_runs"]) for row in rows] == [
        ("ga", "learning_rate=0.0001", "2"),
        ("npo", "learning_rate=0.001", "2"),
    ]
    assert "no finished report" not in (tmp_path / "out" / "table.md").read_text()
    # Again: nothing is left to do.
    assert main(["sweep", file]) == 0
    assert worked[2:] == [[]]


def test_a_method_whose_tuning_failed_waits_and_the_same_command_goes_on(sweep):
    file, worked, broken = sweep
    broken.add("ga-learning_rate=0.001-seed0")
    with pytest.raises(SystemExit, match="1"):
        main(["sweep", file])
    assert [name.split("-")[0] for name in worked[1]] == ["ga", "npo", "npo"]
    broken.clear()
    assert main(["sweep", file]) == 0
    assert worked[2] == ["ga-learning_rate=0.001-seed0"]
    assert worked[3] == ["ga-learning_rate=0.0001-seed1", "ga-learning_rate=0.0001-seed2"]


def test_an_arrays_tasks_are_those_of_its_script_also_once_methods_are_tuned(sweep, tmp_path, capsys):
    file, worked, _ = sweep
    script, first = (
        tmp_path / "array.sh",
        [f"{m}-learning_rate={r}-seed0" for m in ("ga", "npo") for r in ("0.0001", "0.001")],
    )
    assert main(["sweep", file, "--slurm", str(script)]) == 0
    for number in (2, 3, 0, 1):
        # By the third, one method's other seeds are known.
        assert main(["sweep", file, "--only", str(number)]) == 0
        assert worked[-1] == [first[number]]
    assert main(["sweep", file, "--only", "4"]) == 2
    assert "--only 4: there are 4 runs" in capsys.readouterr().err
    assert main(["sweep", file, "--slurm", str(script)]) == 0
    assert main(["sweep", file, "--only", "4"]) == 0
    assert worked[-1] == ["ga-learning_rate=0.0001-seed1"]
    content = yaml.safe_load(Path(file).read_text()) | {"grid": {"learning_rate": [1e-3]}}
    Path(file).write_text(yaml.safe_dump(content))
    assert main(["sweep", file, "--only", "4"]) == 2
    assert "the sweep file has changed since" in capsys.readouterr().err


def test_named_recipes_go_through_both_stages_and_the_others_are_told_as_missing(sweep, tmp_path, capsys):
    file, worked, _ = sweep
    assert main(["sweep", file, "--recipes", "npo", "--dry_run"]) == 0
    assert "ga-" not in (told := capsys.readouterr().out)
    assert "2 runs, 1 seeds" in told
    assert main(["sweep", file, "--recipes", "npo"]) == 0
    first = [f"npo-learning_rate={rate}-seed0" for rate in ("0.0001", "0.001")]
    assert worked == [first, [f"npo-learning_rate=0.001-seed{seed}" for seed in (1, 2)]]
    assert "ga-learning_rate=0.0001-seed0" in (tmp_path / "out" / "table.md").read_text()
    assert main(["sweep", file]) == 0
    assert [name.split("-")[0] for names in worked[2:] for name in names] == ["ga"] * 4
    for wrong, said in (
        (["--recipes", "npo_klr"], "--recipes npo_klr: the sweep has none of this name. Allowed: ga, npo."),
        (["--recipes", "npo", "--only", "0"], "--recipes: leave out --only and --slurm"),
    ):
        assert main(["sweep", file, *wrong]) == 2
        assert said in capsys.readouterr().err


AUDITED = {
    "privacy": {"attacks": ["loss"], "nonmember_dataset": "n.jsonl"},
    "audits": {"perplexity": {"dataset_name": "r.jsonl"}},
}
AUDITED |= {"robustness": {"audits": ["relearn"]}}


@pytest.mark.parametrize("place", ["sweep", "recipe"])
@pytest.mark.parametrize(
    ("more", "on_tuning"),
    [
        ({}, set()),
        ({"select": {"rule": KEPT, "forget": "relearn/remaining", "utility": UTILITY}}, {"robustness"}),
        ({"select": {"rule": KEPT, "forget": FORGET, "utility": "perplexity/perplexity"}}, {"audits"}),
        ({"select": {"rule": KEPT, "forget": "privacy/worst/tpr@1e-1", "utility": UTILITY}}, {"privacy"}),
        ({"stages": 1}, {"privacy", "audits", "robustness"}),
    ],
)
def test_what_chooses_no_setting_is_audited_for_the_chosen_ones_alone(sweep, tmp_path, place, more, on_tuning):
    file = Path(sweep[0])
    content = yaml.safe_load(file.read_text()) | more
    if place == "sweep":
        content |= {"privacy": AUDITED["privacy"], "fields": {k: v for k, v in AUDITED.items() if k != "privacy"}}
    else:
        for recipe in ("ga.yaml", "npo.yaml"):
            (tmp_path / recipe).write_text(yaml.safe_dump(yaml.safe_load((tmp_path / recipe).read_text()) | AUDITED))
    file.write_text(yaml.safe_dump(content))
    spec = read_spec(file)
    every = expand(spec, tmp_path / "out", command.resolve)
    command._add_privacy(spec, every)
    for run in every:
        audited = {name for name in ("audits", "robustness") if run.content.get(name)}
        audited |= set() if run.privacy is None else {"privacy"}
        assert audited == (on_tuning if run.tuning else {*AUDITED})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"stages": 3}, "stages=3; allowed: 1 (all runs), 2"),
        ({"tuning_seed": None}, "Give `tuning_seed`, other `seeds` and a `select` that begins with `best`"),
        ({"seeds": [0]}, "Give `tuning_seed`, other `seeds`"),
        ({"select": "last"}, "Give `tuning_seed`, other `seeds`"),
        ({"fields": {"audits": {"perplexity": {"rows": "r.jsonl"}}}}, "seed1: perplexity"),
    ],
)
def test_stages_that_mean_nothing_are_refused(sweep, capsys, more, told):
    file, _, _ = sweep
    with open(file) as text:
        content = {key: value for key, value in (yaml.safe_load(text) | more).items() if value is not None}
    with open(file, "w") as text:
        yaml.safe_dump(content, text)
    assert main(["sweep", file, "--dry_run"]) == 2
    assert told in capsys.readouterr().err


def test_the_leaderboard_has_every_recipe_of_the_model_and_every_method():
    spec = read_spec(ROOT / "recipes" / "sweeps" / "leaderboard.yaml")
    folder = (ROOT / "recipes" / "tofu_mini" / "smollm2-135m").resolve()
    # Another recipe makes a model for one of these.
    assert {entry.recipe.resolve() for entry in spec.entries} == {*folder.glob("*.yaml")} - {
        folder / "base.yaml", folder / "whp_reinforced.yaml",
    }  # fmt: skip
    methods = {yaml.safe_load(entry.recipe.read_text())["method"] for entry in spec.entries}
    assert {*METHODS} - methods == {"multidelete"}
    assert (spec.stages, spec.tuning_seed, len(spec.seeds)) == (2, 0, 4)
