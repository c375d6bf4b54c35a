# SPDX-License-Identifier: Apache-2.0
"""Rows that another is better than: beyond intervals, by distance from the retrained model, never by a gap."""

import pytest
import yaml
from conftest import ROOT
from sweep_runs import FORGET, UTILITY, attacked, baseline, run_of, sweep_of

from hf_unlearn import METHODS
from hf_unlearn.report.sweep.dominance import dominated
from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.report.sweep.tables import render_table
from hf_unlearn.sweep.collect import _cost
from hf_unlearn.sweep.spec import read_spec


NAMES = [FORGET, UTILITY, "seconds"]


def told(runs, names=NAMES, **settings) -> set[tuple[str, str, tuple[str, ...]]]:
    sweep = sweep_of(runs, **settings)
    return {(one.row, one.by, tuple(one.better)) for one in dominated(sweep, tabulate(sweep), names)}


def both(label, forget, utility, seconds=10.0, **more):
    return [run_of(label, forget, utility, seed=seed, seconds=seconds, **more) for seed in (0, 1)]


def test_a_row_is_dominated_where_another_is_better_beyond_the_intervals():
    # Intervals are 0.1 to each side: utilities 0.5 and 0.8 do not meet, 0.65 meets both.
    runs = [*both("good", 0.0, 0.8), *both("bad", 0.0, 0.5), *both("middling", 0.0, 0.65)]
    assert told(runs) == {("bad", "good", (UTILITY,))}


def test_what_is_better_in_one_and_worse_in_another_dominates_nothing():
    runs = [*both("forgets", 0.0, 0.5), *both("keeps", 0.5, 0.8), *both("neither", 0.5, 0.5)]
    assert told(runs) == {("neither", "forgets", (FORGET,)), ("neither", "keeps", (UTILITY,))}


def test_an_interval_reaches_over_all_seeds():
    seeds = [run_of("bad", 0.0, u, seed=seed) for seed, u in ((0, 0.5), (1, 0.62))]
    assert told([*both("good", 0.0, 0.8), *seeds]) == set()


def test_times_differ_beyond_a_tenth_each():
    # 10 s reach to 11, and 12 s from 10.8; 14 s from 12.6.
    runs = [*both("fast", 0.0, 0.8, 10.0), *both("near", 0.0, 0.8, 12.0), *both("slow", 0.0, 0.8, 14.0)]
    assert told(runs) == {("slow", "fast", ("seconds",))}
    assert told(runs, [FORGET, UTILITY]) == set()


def test_arithmetic_counts_where_it_is_named():
    runs = [*both("dear", 0.0, 0.8, 10.0), *both("cheap", 0.0, 0.8, 14.0)]
    runs = [run | {"flops": 3e12 if run["method"] == "dear" else 2e12} for run in runs]
    assert told(runs, [FORGET, UTILITY, "teraflop"]) == {("dear", "cheap", ("teraflop",))}
    assert told([run | {"flops": None} for run in runs], [FORGET, UTILITY, "seconds"]) == {
        ("cheap", "dear", ("seconds",))
    }


def test_forgetting_more_than_a_model_that_never_knew_is_no_better():
    baselines = [baseline("target", 1.0, 0.9), baseline("retrained", 0.5, 0.9)]
    runs = [*both("like", 0.5, 0.8), *both("over", 0.0, 0.8)]
    assert told(runs, baselines=baselines) == {("over", "like", (FORGET,))}
    # Without a retrained model lower is all there is.
    assert told(runs, baselines=[baseline("target", 1.0, 0.9)]) == {("like", "over", (FORGET,))}


def test_what_has_no_value_dominates_nothing_that_has_one():
    lost = [run_of("lost", None, 0.8, seed=seed) for seed in (0, 1)]
    assert told([*both("known", 0.9, 0.8), *lost]) == {("lost", "known", (FORGET,))}
    # Neither has one: it decides nothing.
    rate = "privacy/worst/tpr@1e-2"
    runs = [*both("good", 0.0, 0.8, privacy=attacked(0.5)), *both("bad", 0.0, 0.5, privacy=attacked(0.5))]
    assert told(runs, [rate, UTILITY]) == {("bad", "good", (UTILITY,))}


def test_lower_rates_of_attacks_are_better():
    rate = "privacy/worst/tpr@1e-1"
    runs = [*both("safe", 0.0, 0.8, privacy=attacked(0.2)), *both("found", 0.0, 0.8, privacy=attacked(0.9))]
    assert told(runs, [rate]) == {("found", "safe", (rate,))}


def test_a_metric_that_no_run_has_is_refused():
    with pytest.raises(ValueError, match="dominance: no run has forget/exact"):
        told(both("good", 0.0, 0.8), ["forget/exact"])


def test_the_table_names_both_and_those_that_nobody_dominates(tmp_path):
    runs = [*both("good", 0.0, 0.8, cost={"time": 1.07, "memory": 0.89}), *both("bad", 0.0, 0.5)]
    sweep = sweep_of(runs, dominance=NAMES)
    text = render_table(sweep, tabulate(sweep), {}, tmp_path)
    assert "- bad: by good (model utility)" in text
    assert "- By none: good." in text
    # Both seeds' intervals, and times with their margin.
    assert "| bad | [0.0, 10.0] | [0.400, 0.600] | [9.0, 11.0] |" in text.replace("-10.0", "0.0")
    assert "time of a step / SFT | memory / SFT |" in text
    assert "| 1.07 | 0.89 |" in text
    # A sweep of before has no such settings, and no such section.
    assert "Dominated" not in render_table(sweep_of(runs), tabulate(sweep_of(runs)), {}, tmp_path)


def test_a_run_s_cost_is_its_retain_term_s_or_the_largest(monkeypatch):
    row = {"label": "npo_klr", "method": "npo", "policy_forwards": 1, "reference_forwards": 0}
    ratios = {"cpu_time_ratio": {"median": 1.1}, "time_ratio": {"median": 9.0}, "memory_ratio": {"median": 0.9}}
    rows = [
        {**row, **ratios, "settings": {"retain_loss": "kl"}},
        {**row, **ratios, "label": "npo", "settings": {"retain_loss": "none"}, "cpu_time_ratio": {"median": 0.8}},
        {**row, **ratios, "label": "npo (plain)", "settings": {}, "cpu_time_ratio": {"median": 5.0}},
        {"label": "npo", "method": "npo", "settings": {}, "error": "no memory"},
    ]
    content = {"machine": {"device": "cpu"}, "rows": rows}
    monkeypatch.setattr("hf_unlearn.bench.measured.measured", lambda: content)
    assert _cost("npo", "none") == {"time": 0.8, "memory": 0.9}
    assert _cost("npo", "nll") == {"time": 1.1, "memory": 0.9}
    assert _cost("dpo", "nll") is None


def test_the_zoo_s_sweep_has_every_method_for_language_models():
    spec = read_spec(ROOT / "recipes" / "sweeps" / "zoo_world.yaml")
    methods = {yaml.safe_load(entry.recipe.read_text())["method"] for entry in spec.entries}
    # Pictures have a sweep of their own.
    missing = {*METHODS} - methods - {"multidelete"}
    assert not missing, f"List the demo recipes of {missing} in recipes/sweeps/zoo_world.yaml, at its budget."
    assert len(spec.seeds) == 3
    assert spec.dominance[-1] == "teraflop"


def test_dominance_is_a_list_of_names(tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"recipes": "x.yaml", "dominance": [1]}))
    (tmp_path / "x.yaml").write_text("method: ga\n")
    with pytest.raises(ValueError, match="dominance="):
        read_spec(tmp_path / "sweep.yaml")
