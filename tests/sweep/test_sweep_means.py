# SPDX-License-Identifier: Apache-2.0
"""Means over seeds and targets, and selection rules, against formulas written here."""

import csv
import itertools

import numpy as np
import pytest
from sweep_runs import FORGET, UTILITY, metric, run_of, slow_mean, sweep_of

from hf_unlearn.report.sweep.means import mean_of, tabulate
from hf_unlearn.report.sweep.rules import Rule, read_rule
from hf_unlearn.report.sweep.write import write_sweep_report


def row_of(sweep, label, variant=""):
    (row,) = [r for r in tabulate(sweep).of("result") if (r.label, r.variant) == (label, variant)]
    return row


# Means


@pytest.mark.parametrize("seed", range(20))
def test_means_are_those_of_a_slow_formula(seed):
    rng = np.random.default_rng(seed)
    targets, seeds = rng.integers(1, 5), rng.integers(1, 5)
    values = {
        (f"t{t}", s): None if rng.random() < 0.2 else rng.random()
        for t, s in itertools.product(range(targets), range(seeds))
    }
    if all(value is None for value in values.values()):
        values["t0", 0] = 0.5
    cell = mean_of(values)
    for found, wanted in zip((cell.mean, cell.sd, cell.low, cell.high), slow_mean(values), strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted))
    assert cell.missing == sum(value is None for value in values.values())
    assert cell.n + cell.missing == len(values)


def test_a_seed_without_a_hard_target_does_not_seem_better():
    # The second seed lacks the target that nobody forgets.
    easy_and_hard = {("easy", 0): 0.1, ("hard", 0): 0.9, ("easy", 1): 0.1, ("hard", 1): None}
    cell = mean_of(easy_and_hard)
    assert cell.mean == pytest.approx(0.5)
    assert cell.sd == 0.0
    assert cell.missing == 1


def test_what_nobody_has_is_missing_and_never_a_number():
    cell = mean_of({(None, 0): None, (None, 1): None})
    assert (cell.mean, cell.sd, cell.low, cell.missing) == (None, None, None, 2)


def test_the_tuning_seed_is_in_no_mean():
    runs = [run_of("npo", f, 0.8, seed=seed) for seed, f in ((42, 0.0), (0, 0.4), (1, 0.6))]
    table = tabulate(sweep_of(runs, tuning_seed=42))
    assert row_of(sweep_of(runs, tuning_seed=42), "npo").cells[FORGET].mean == pytest.approx(0.5)
    assert [row.cells[FORGET].mean for row in table.of("tuning")] == [0.0]
    assert row_of(sweep_of(runs), "npo").cells[FORGET].mean == pytest.approx(1 / 3)


def test_time_is_held_against_retraining_where_that_is_known(tmp_path):
    runs = [run_of("npo", 0.1, 0.8, seconds=5.0), run_of("retrain", 0.0, 0.9, seconds=20.0)]
    timeless = run_of("npo", 0.1, 0.8, seed=1, seconds=None)
    write_sweep_report(sweep_of([*runs, timeless]), tmp_path)
    rows = {row["recipe"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert (float(rows["npo"]["share_of_retraining"]), rows["npo"]["seconds_n"]) == (0.25, "1")
    assert tabulate(sweep_of(runs[:1])).retrained_seconds is None
    assert tabulate(sweep_of(runs[:1], retrained_seconds=50)).retrained_seconds == 50


def test_equal_values_and_single_ones_have_no_interval():
    for values in ({("a", 0): 0.5, ("b", 0): 0.5}, {("a", 0): 0.5}):
        cell = mean_of(values)
        assert (cell.mean, cell.low, cell.high) == (0.5, None, None)


# Rules


@pytest.mark.parametrize(
    ("text", "kind", "bound"),
    [
        ("last", "last", None),
        ("first forget <= 0.5 * target", "first", 0.5),
        ("best utility s.t.  forget <= 1e-1", "best", 0.1),
        ("pareto", "pareto", None),
    ],
)
def test_rules_are_read(text, kind, bound):
    assert read_rule(text, "here") == Rule(kind, bound)
    assert read_rule({"rule": text, "forget": "a", "utility": "b"}, "here") == Rule(kind, bound, "a", "b")


def test_the_first_evaluation_below_a_share_of_the_target():
    path = [(1, 0.9, 0.9), (2, 0.5, 0.7), (3, 0.2, 0.5)]
    runs = [run_of("ga", 0.0, 0.1, points=path), run_of("npo", 0.8, 0.9, points=[(1, 0.7, 0.9)])]
    sweep = sweep_of(runs, select="first forget <= 0.5 * target")
    table = tabulate(sweep)
    (row,) = table.of("result")
    # 0.5 times the target's 1.0 is met in the second evaluation.
    assert (row.label, row.cells[FORGET].mean, row.cells[UTILITY].mean) == ("ga", 0.5, 0.7)
    assert table.unmet == [runs[1]["name"]]
    assert table.rule == f"first: of every run the first evaluation with {FORGET} <= 0.5 times the target's"


def test_the_best_setting_is_chosen_on_the_tuning_seed_and_judged_on_the_others():
    runs = []
    # forget, utility by seed; on the tuning seed 42 the second setting is best among those that forget.
    table = {
        0.1: {42: (0.5, 0.9), 0: (0.0, 0.9)},
        0.2: {42: (0.1, 0.7), 0: (0.3, 0.6)},
        0.3: {42: (0.0, 0.6), 0: (0.0, 0.8)},
    }
    for beta, seeds in table.items():
        runs += [run_of("npo", *values, seed=seed, setting={"beta": beta}) for seed, values in seeds.items()]
    chosen = tabulate(sweep_of(runs, select="best utility s.t. forget <= 0.1", tuning_seed=42))
    (row,) = chosen.of("result")
    assert (row.variant, row.cells[FORGET].mean, row.cells[UTILITY].mean) == ("beta=0.2", 0.3, 0.6)
    # Without a tuning seed, by means over all: only the third forgets on both.
    (row,) = tabulate(sweep_of(runs, select="best utility s.t. forget <= 0.1")).of("result")
    assert row.variant == "beta=0.3"
    assert tabulate(sweep_of(runs, select="best utility s.t. forget <= 0")).unmet == []
    none = tabulate(sweep_of(runs[:2], select="best utility s.t. forget <= 0.1", tuning_seed=42))
    assert (none.of("result"), none.unmet) == ([], ["npo"])


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_a_slow_comparison(seed):
    rng = np.random.default_rng(seed)
    points = [(round(f, 1), round(u, 1)) for f, u in rng.random((12, 2))]
    runs = [run_of("npo", *point, setting={"beta": i}) for i, point in enumerate(points)]
    found = {row.variant for row in tabulate(sweep_of(runs, select="pareto")).of("result")}
    front = set()
    for i, (f, u) in enumerate(points):
        dominated = any(g <= f and v >= u and (g < f or v > u) for g, v in points)
        front |= set() if dominated else {f"beta={i}"}
    assert found == front


def test_a_front_of_one_point_is_refused():
    with pytest.raises(ValueError, match="every method has one. Give a `grid`"):
        tabulate(sweep_of([run_of("npo", 0.1, 0.8), run_of("ga", 0.1, 0.8)], select="pareto"))


def test_a_metric_that_nobody_has_is_named():
    with pytest.raises(ValueError, match=r"select: no run has 'forget/acc'. There are: forget/exact_match"):
        tabulate(sweep_of([run_of("npo", 0.1, 0.8)], select={"rule": "last", "forget": "forget/acc"}))
    with pytest.raises(ValueError, match="metrics: no run has x"):
        tabulate(sweep_of([run_of("npo", 0.1, 0.8)], metrics=["x"]))


def test_classifiers_are_read_by_their_accuracy():
    runs = [run_of("scrub", 0.2, 0.8)]
    for one in runs:
        one["metrics"] = {
            "forget/accuracy": metric(0.2),
            "retain/accuracy": metric(0.8, "higher"),
            "test/accuracy": metric(0.7),
        }
        one["values"] = {name: m["value"] for name, m in one["metrics"].items()}
    table = tabulate(sweep_of(runs, baselines=[]))
    assert (table.forget, table.utility) == ("forget/accuracy", "retain/accuracy")
    assert table.metrics == ["forget/accuracy", "retain/accuracy", "test/accuracy"]
