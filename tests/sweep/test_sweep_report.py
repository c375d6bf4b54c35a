# SPDX-License-Identifier: Apache-2.0
"""Tables, figures and the long form of a sweep, and runs from a tracker."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from sweep_runs import FORGET, UTILITY, attacked, baseline, metric, run_of, slow_mean, sweep_of

from hf_unlearn.cli.main import main
from hf_unlearn.report.sweep.curves import ablation_lines, round_lines, rounds_figure
from hf_unlearn.report.sweep.figures import targets_figure
from hf_unlearn.report.sweep.long_form import COLUMNS, write_long
from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.report.sweep.privacy_figures import roc_of_sweep
from hf_unlearn.report.sweep.tables import render_table, write_table, write_targets
from hf_unlearn.report.sweep.write import load_sweep, print_sweep, write_sweep_report
from hf_unlearn.sweep.wandb_runs import collect_wandb


# Files


@pytest.fixture
def whole():
    """Two methods, two targets, three seeds, one tuned on; a run without a value and one that is missing."""
    runs = []
    for (label, shift), beta, target, seed in itertools.product(
        (("npo", 0.0), ("ga", 0.2)), (0.1, 1.0), ("ann", "bob"), (42, 0, 1)
    ):
        forget = shift + 0.1 * beta + (0.3 if target == "bob" else 0) + 0.01 * (seed % 5)
        privacy = attacked(0.2 + shift, seed)
        runs.append(run_of(label, forget, 0.9 - shift, seed, target, {"beta": beta}, privacy=privacy))
    runs[1]["metrics"][FORGET] = metric(None)
    runs[1]["values"][FORGET] = None
    for run in runs:
        values = [{FORGET: 0.5, UTILITY: 0.8}, {FORGET: 0.3, UTILITY: 0.7}]
        run["rounds"] = [
            {"round": i + 1, "threshold": t, "values": v}
            for i, (t, v) in enumerate(zip((0.9, 0.8), values, strict=True))
        ]
    bases = [baseline(k, f, 0.9, t) for k, f in (("target", 1.0), ("retrained", 0.0)) for t in ("ann", "bob")]
    missing = [{"name": "npo-lost", "label": "npo", "why": "no finished report"}]
    return sweep_of(runs, bases, tuning_seed=42, missing=missing)


@pytest.mark.drawn
def test_all_files_are_written(whole, tmp_path, capsys):
    files = write_sweep_report(whole, tmp_path)
    plots = {"utility", "targets", "ablation", "rounds", "privacy", "privacy_roc", "distribution"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{p}.{e}" for p in plots for e in ("png", "pdf")
    }
    assert all((tmp_path / "plots" / f"{name}.png").stat().st_size > 10_000 for name in plots)
    assert all(path.is_file() for path in files.values())
    text = (tmp_path / "table.md").read_text()
    assert "Selection, the same for every method: last: every run as it ended." in text
    assert "Seed 42 was tuned on and is in no mean." in text
    assert "- npo-lost: no finished report" in text
    assert "| unresolved |" in text
    assert "nan" not in text.lower()
    print_sweep(whole)
    assert "Selection: last: every run as it ended." in capsys.readouterr().out
    # From the saved JSON, the same.
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    assert main(["report", str(tmp_path / "sweep.json"), "--output_dir", str(tmp_path / "again")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.csv")} == before


def test_the_long_form_has_every_number_once(whole, tmp_path):
    write_long(whole, tmp_path / "long.csv")
    with (tmp_path / "long.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    runs = [row for row in rows if row["config_hash"]]
    assert len(runs) == len(whole["runs"]) * (2 + 5)
    assert len(rows) - len(runs) == len(whole["baselines"]) * 2
    rates = [row for row in runs if row["metric"] == "tpr" and row["fpr_target"] == "0.01"]
    assert {(row["value"], row["resolved"]) for row in rates} == {("", "false")}
    rates = [row for row in runs if row["metric"] == "tpr" and row["fpr_target"] == "0.1"]
    assert {(r["resolved"], r["fpr_achieved"], r["n_members"], r["n_nonmembers"]) for r in rates} == {
        ("true", "0.125", "32", "64")
    }
    assert {row["beta"] for row in runs} == {"0.1", "1.0"}
    assert {row["alpha"] for row in rows} == {"0.5", ""}
    (gap,) = [r for r in runs if r["metric"] == "exact_match" and r["value"] == ""]
    assert (gap["split"], gap["ci_low"]) == ("forget", "")


def test_the_table_holds_the_means(whole, tmp_path):
    write_table(tabulate(whole), tmp_path / "table.csv")
    write_targets(tabulate(whole), tmp_path / "targets.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["target", "retrained", *["result"] * 4, *["tuning"] * 4]
    row = next(r for r in rows if (r["kind"], r["recipe"], r["variant"]) == ("result", "ga", "beta=1.0"))
    values = {
        (r["target"], r["seed"]): r["values"][FORGET]
        for r in whole["runs"]
        if r["label"] == "ga" and r["setting"]["beta"] == 1.0 and r["seed"] != 42
    }
    for part, wanted in zip(("", "_sd", "_low", "_high"), slow_mean(values), strict=True):
        # A share has no interval beyond 0 and 1.
        assert float(row[FORGET + part]) == pytest.approx(min(max(wanted, 0), 1))
    assert (row["n_runs"], row["n_seeds"], row["n_targets"]) == ("4", "2", "2")
    assert row["privacy/worst/tpr@1e-2"] == ""
    assert float(row["privacy/worst/tpr@1e-1"]) == pytest.approx(0.4)
    with (tmp_path / "targets.csv").open() as file:
        per_target = list(csv.DictReader(file))
    bob = next(
        r for r in per_target
        if (r["target"], r["kind"], r["recipe"], r["variant"]) == ("bob", "result", "ga", "beta=1.0")
        and r["metric"] == FORGET
    )  # fmt: skip
    wanted = [value for (target, _), value in values.items() if target == "bob"]
    assert float(bob["mean"]) == pytest.approx(np.mean(wanted))
    # Two seeds.
    assert bob["interval"] == "seeds"
    _, _, low, high = slow_mean({("bob", seed): value for seed, value in enumerate(wanted)})
    assert (float(bob["low"]), float(bob["high"])) == pytest.approx((low, high))
    base = next(r for r in per_target if (r["target"], r["kind"], r["metric"]) == ("bob", "target", UTILITY))
    assert (base["interval"], float(base["low"]), float(base["high"])) == ("items", pytest.approx(0.8), 1.0)


def test_the_verdicts_of_a_rows_runs_are_in_the_table(tmp_path, capsys):
    kept, lost = "✓ Forgotten like retrained; the rest is kept", "✗ Not forgotten; the rest is kept"
    said = {"npo": (kept, kept), "ga": (kept, lost), "old": (None, None)}
    runs = [
        run_of(label, 0.1, 0.8, seed, **({} if text is None else {"verdict": {"short": text, "line": text}}))
        for label, texts in said.items()
        for seed, text in enumerate(texts)
    ]
    sweep = sweep_of(runs)
    write_sweep_report(sweep, tmp_path)
    lines = {line.split(" | ")[0]: line for line in (tmp_path / "table.md").read_text("utf-8").splitlines()}
    assert lines["| npo"].endswith(f"| {kept} |")
    assert lines["| ga"].endswith(f"| {kept} (1 of 2 runs)<br>{lost} (1 of 2 runs) |")
    assert lines["| old"].endswith("|  |")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        rows = {row["recipe"]: row["verdict"] for row in csv.DictReader(file)}
    assert rows["npo"] == kept
    assert rows["target"] == ""
    print_sweep(sweep)
    assert f"npo: {kept}" in " ".join(capsys.readouterr().out.split())
    for run in runs:
        run.pop("verdict", None)
    write_sweep_report(sweep, tmp_path)
    assert "in words" not in (tmp_path / "table.md").read_text("utf-8")


def test_of_one_seed_a_targets_interval_is_the_runs_own(tmp_path):
    runs = [
        run_of("npo", forget, 0.9, target=target, privacy=attacked(0.3))
        for target, forget in (("ann", 0.2), ("bob", 0.4))
    ]
    runs[1]["metrics"][UTILITY]["interval"] = None
    bases = [baseline("target", 1.0, 0.9, target) for target in ("ann", "bob")]
    sweep = sweep_of(runs, bases)
    table = tabulate(sweep)
    write_targets(table, tmp_path / "targets.csv")
    with (tmp_path / "targets.csv").open() as file:
        rows = {(r["target"], r["metric"]): r for r in csv.DictReader(file) if r["kind"] == "result"}
    for name, low, high in ((FORGET, 0.1, 0.3), ("privacy/worst/tpr@1e-1", 0.2, 0.4)):
        row = rows["ann", name]
        assert (row["interval"], row["sd"], row["n"]) == ("items", "", "1")
        assert (float(row["low"]), float(row["high"])) == (pytest.approx(low), pytest.approx(high))
    assert [rows["bob", UTILITY][part] for part in ("mean", "low", "high", "interval")] == ["0.9", "", "", ""]
    text = render_table(sweep, table, {}, tmp_path).split("## Targets")[1]
    assert "| bob | 100.0 [90.0, 110.0] | 40.0 [30.0, 50.0] |" in text
    assert "| bob | 0.900 [0.800, 1.000] | 0.900 |" in text
    assert "Brackets: the 95 % interval of the one run that there is, over its items." in text
    # The same in the figure: one bar of error for each number that has an interval.
    figure = targets_figure(sweep, table)
    ends = [sorted(tuple(np.round(line.get_segments()[0][:, 1], 3)) for line in ax.collections) for ax in figure.axes]
    assert ends == [[(10, 30), (30, 50), (90, 110), (90, 110)], [(0.8, 1.0)] * 3]


@pytest.mark.parametrize(
    ("modes", "label"),
    [
        (["quantile", "quantile"], "Threshold, quantile"),
        ([None, "cosine"], "Threshold, cosine"),
        ([None, "quantile"], "Threshold"),
    ],
)
def test_the_rounds_are_told_by_what_their_thresholds_are(modes, label):
    runs = [run_of("atu", 0.1, 1.0, seed) for seed in range(2)]
    for seed, (run, mode) in enumerate(zip(runs, modes, strict=True)):
        run["fields"] |= {} if mode is None else {"threshold_mode": mode}
        run["rounds"] = [
            {"round": i + 1, "threshold": t, "values": {FORGET: 1.0 - 0.05 * seed, UTILITY: 0.8}}
            for i, t in enumerate((0.9, 0.8))
        ]
    sweep = sweep_of(runs)
    figure = rounds_figure(sweep, tabulate(sweep))
    assert {ax.get_xlabel() for ax in figure.axes} == {f"{label} (rounds go to the right)"}
    percent = figure.axes[0]
    figure.canvas.draw()
    assert max(percent.get_yticks()) <= 100
    low, high = percent.get_ylim()
    assert low < 95
    assert 100 < high <= 104


def test_lines_of_an_ablation_differ_in_one_field(whole):
    runs = [
        run_of("mu", 0.1, 0.8, setting={"alpha": a, "beta": b})
        for a, b in ((0, 0.5), (1, 0.5), (2, 0.5), (1, 0.0), (1, 1.0))
    ]
    table = tabulate(sweep_of(runs))
    assert {k: [r.variant for r in v] for k, v in ablation_lines(table, "alpha").items()} == {
        "mu beta=0.5": ["alpha=0 beta=0.5", "alpha=1 beta=0.5", "alpha=2 beta=0.5"]
    }
    assert {k: len(v) for k, v in ablation_lines(table, "beta").items()} == {"mu alpha=1": 3}
    assert set(round_lines(whole)) == {"npo beta=0.1", "npo beta=1.0", "ga beta=0.1", "ga beta=1.0"}


def test_figures_without_numbers_are_not_drawn_and_old_ones_go(tmp_path):
    (tmp_path / "plots").mkdir()
    for name in ("targets.png", "privacy.pdf"):
        (tmp_path / "plots" / name).touch()
    write_sweep_report(sweep_of([run_of("npo", 0.1, 0.8)]), tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"utility"}


def test_a_file_that_is_no_sweep_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no sweep.json of version 1"):
        load_sweep(tmp_path / "sweep.json")
    assert main(["report", str(tmp_path / "sweep.json"), "other"]) == 2
    assert "Name it alone" in capsys.readouterr().err


# Runs from a tracker


class FakeRun:
    def __init__(self, name, group, config, summary, state="finished", tags=()):
        self.name, self.id, self.group, self.state = name, f"id-{name}-{len(summary)}", group, state
        self.config, self.summary, self.tags = config, summary, list(tags)


class FakeApi:
    def __init__(self, *runs):
        self.asked = []
        self.found = runs

    def runs(self, project):
        self.asked.append(project)
        return iter(self.found)


def test_summaries_become_the_same_form(tmp_path):
    summary = {
        "eval/forget/exact_match": 0.2,
        "eval/model_utility": 0.7,
        "train/train_runtime": 12.0,
        "eval/runtime": 3,
    }
    runs = [
        FakeRun("npo-seed0", "npo", {"seed": 0, "beta": 0.1, "run_name": "a"}, summary, tags=["target=ann", "paper"]),
        FakeRun(
            "npo-seed1",
            "npo",
            {"seed": 1, "beta": 0.1, "run_name": "b"},
            {**summary, "eval/forget/exact_match": "NaN"},
        ),
        FakeRun("npo-seed0", "npo", {"seed": 0, "beta": 0.5}, {**summary, "eval/retain/rouge": 0.5}),
        FakeRun("npo-again", "npo", {"seed": 0, "beta": 0.5}, summary),
        FakeRun("ga-seed0", None, {"seed": 0}, summary, state="crashed"),
    ]
    api = FakeApi(*runs)
    sweep = collect_wandb("me/project", api)
    assert api.asked == ["me/project"]
    assert [(r["label"], r["variant"], r["seed"], r["target"]) for r in sweep["runs"]] == [
        ("npo", "beta=0.1", 0, "ann"), ("npo", "beta=0.1", 1, None), ("npo", "beta=0.5", 0, None)
    ]  # fmt: skip
    assert {name: m["value"] for name, m in sweep["runs"][1]["metrics"].items()} == {FORGET: None, UTILITY: 0.7}
    assert [one["why"] for one in sweep["missing"]] == [
        "is crashed",
        "same method, setting, seed and target as npo-seed0 (id-npo-seed0-5)",
    ]
    write_sweep_report(json.loads(json.dumps(sweep)), tmp_path)
    assert not math.isnan(tabulate(sweep).of("result")[0].cells[FORGET].mean)


def test_a_tracker_that_is_not_there_is_told(capsys):
    assert main(["report", "--from_wandb", "me/project"]) == 2
    assert "needs the package wandb, which is not installed" in capsys.readouterr().err
    assert main(["report", "--from_wandb", "project"]) == 2
    assert "give ENTITY/PROJECT" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there are no runs"):
        collect_wandb("me/project", FakeApi())


def test_only_ends_were_attacked(tmp_path):
    path = [(1, 0.4, 0.9)]
    runs = [run_of("ga", 0.0, 0.1, points=path, privacy=attacked(0.3)), run_of("npo", 0.0, 0.1, privacy=attacked(0.2))]
    sweep = sweep_of(runs, select="first forget <= 0.5 * target")
    cells = {row.label: row.cells["privacy/worst/tpr@1e-1"].mean for row in tabulate(sweep).of("result")}
    assert cells == {"ga": None, "npo": 0.2}
    figure = roc_of_sweep(sweep, tabulate(sweep))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["npo"]
