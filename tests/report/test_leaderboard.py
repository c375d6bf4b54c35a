# SPDX-License-Identifier: Apache-2.0
"""One page over all methods: ranks as intervals, the retrained models' spread, and pages that keep what is theirs."""

import json
import re

import numpy as np
import pytest
from scipy import stats
from sweep_runs import FORGET, UTILITY, attacked, baseline, metric, run_of, sweep_of

from hf_unlearn.cli.main import main
from hf_unlearn.report.leaderboard.board import ABOVE, BELOW, INSIDE, MIXED, board_of
from hf_unlearn.report.leaderboard.figures import LEAST, _before_after, utility_figure
from hf_unlearn.report.leaderboard.tables import ranks_part, results_part, retrained_part, robustness_part
from hf_unlearn.report.leaderboard.write import write_leaderboard
from hf_unlearn.report.naming import scale
from hf_unlearn.report.sweep.dominance import Dominated
from hf_unlearn.report.sweep.means import cell_of, tabulate
from hf_unlearn.report.sweep.ranks import overall_ranks, rank_text, ranks
from hf_unlearn.report.sweep.spread import spread_of
from hf_unlearn.report.sweep.tables import text_of


WORST = "relearn/worst/remaining"


def seeds(label, *values, utility=0.8, **more):
    """A method with one run a seed; intervals are 0.1 to each side."""
    return [run_of(label, value, utility, seed=seed, **more) for seed, value in enumerate(values)]


def attack(value, low, high, before=0.0, verdict="suppressed", which="probability/remaining"):
    """What an audit of robustness found in a run."""
    worst = metric(value)
    worst |= {"interval": None if value is None else [low, high], "details": {"which": which, "verdict": verdict}}
    family = {**worst, "details": {"remaining_before": before}}
    return {WORST: worst, f"relearn/{which}": family}


def with_attack(runs, *found):
    for run, one in zip(runs, found, strict=True):
        run["metrics"] |= one
        run["values"] |= {name: content["value"] for name, content in one.items()}
    return runs


# Ranks


def test_a_rank_is_as_wide_as_the_intervals_leave_it():
    # By hand, lower is better: a and b meet, b and c meet, a is before c; d is behind all; e says nothing.
    ends = {"a": (0.0, 0.2), "b": (0.1, 0.4), "c": (0.3, 0.5), "d": (0.6, 0.7), "e": None}
    assert ranks(ends) == {"a": (1, 3), "b": (1, 4), "c": (2, 4), "d": (4, 5), "e": (1, 5)}
    # docs/leaderboards.md has these four.
    del ends["e"]
    assert [rank_text(rank) for rank in ranks(ends).values()] == ["1–2", "1–3", "2–3", "4"]
    assert [rank_text(rank) for rank in ((1, 1), (2, 4))] == ["1", "2–4"]


def test_every_order_that_the_intervals_allow_is_within_the_ranks():
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = rng.random(6)
        ends = {str(i): (a, a + b) for i, (a, b) in enumerate(zip(low, 0.4 * rng.random(6), strict=True))}
        found = ranks(ends)
        for _ in range(20):
            drawn = {row: rng.uniform(*end) for row, end in ends.items()}
            order = sorted(drawn, key=drawn.get)
            assert all(found[row][0] <= place <= found[row][1] for place, row in enumerate(order, start=1))


def test_the_overall_rank_counts_who_dominates_whom():
    pairs = [Dominated("c", "a", ["x"]), Dominated("c", "b", ["x"]), Dominated("d", "a", ["x"])]
    assert overall_ranks("abcd", pairs) == {"a": (1, 2), "b": (1, 3), "c": (3, 4), "d": (2, 4)}


def test_methods_that_the_runs_cannot_tell_apart_share_their_ranks():
    runs = [*seeds("like", 0.0, 0.1), *seeds("alike", 0.05, 0.1), *seeds("worse", 0.9, 0.9)]
    board = board_of(sweep_of(runs, dominance=[FORGET]))
    assert board.overall == {"like": (1, 2), "alike": (1, 2), "worse": (3, 3)}
    assert [row.name for row in board.rows] == ["alike", "like", "worse"]
    text = ranks_part(board)
    assert "| worse | 3 | 3 |" in text
    assert "- worse: by " in text
    assert "- By none: alike, like." in text


def test_what_is_not_known_of_a_method_is_no_reason_to_call_it_worse():
    rate = "privacy/worst/tpr@1e-1"
    known, silent = seeds("known", 0.1, privacy=attacked(0.9)), seeds("silent", 0.1)
    bad = seeds("bad", 0.1, utility=0.2, privacy=attacked(0.2))
    board = board_of(sweep_of([*known, *silent, *bad], dominance=[FORGET, UTILITY, rate]))
    # Nor does it dominate another, however good the rest is.
    assert board.pairs == []
    assert board.ranks[rate]["silent"] == (1, 3)


# The retrained models


def retrained(*values):
    return [run_of("retrain", value, 0.9, seed=seed, fields={}) for seed, value in enumerate(values)]


def test_the_spread_is_where_one_more_retrained_model_is_expected():
    values = [0.3, 0.35, 0.5]
    spread = spread_of(tabulate(sweep_of(retrained(*values[1:]), [baseline("retrained", values[0], 0.9)])), FORGET)
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * np.sqrt(1 + 1 / 3)
    assert sorted(spread.values) == values
    assert (spread.low, spread.high) == (0.0, pytest.approx(min(np.mean(values) + half, 1.0)))


def test_equal_retrained_models_leave_room_for_a_row():
    table = tabulate(sweep_of(retrained(0.0, 0.0), [baseline("retrained", 0.0, 0.9)]))
    assert spread_of(table, FORGET).high == pytest.approx(1 / 32)


def test_models_that_saw_the_forget_rows_are_no_retrained_ones():
    reinforced = retrained(0.9, 0.9)
    for run in reinforced:
        run["fields"] = {"train_on": "forget"}
    assert spread_of(tabulate(sweep_of(reinforced, [baseline("retrained", 0.0, 0.9)])), FORGET) is None
    # Two are too few to say what a third one would show.
    assert spread_of(tabulate(sweep_of(retrained(0.1), [baseline("retrained", 0.0, 0.9)])), FORGET) is None


def test_the_figure_says_of_how_many_models_the_spread_is_and_draws_no_bar_beyond_its_edge():
    runs = [*retrained(0.1, 0.12), *seeds("all", 1e-12, 0.9), *seeds("some", 0.5, 0.9)]
    board = board_of(sweep_of(runs, [baseline("retrained", 0.11, 0.9)]))
    figure = utility_figure(board)
    (words,) = (text.get_text() for text in figure.legends[0].get_texts() if "spread" in text.get_text())
    assert words == "3 retrained models' spread"
    (ax,) = figure.axes
    ends = [x for bars in ax.collections for path in bars.get_paths() for x, _ in path.vertices]
    assert min(ends) == pytest.approx(LEAST * scale(FORGET), rel=1e-3)


def test_a_method_inside_the_spread_is_like_retrained_and_one_outside_is_not_with_the_numbers():
    runs = [*retrained(0.30, 0.31), *seeds("near", 0.3, 0.31), *seeds("low", 0.0, 0.01), *seeds("high", 0.9, 0.9)]
    runs += seeds("torn", 0.3, 0.9)
    board = board_of(sweep_of(runs, [baseline("target", 1.0, 0.9), baseline("retrained", 0.32, 0.9)]))
    by_name = {row.name: row for row in board.rows}
    said = {name: board.called(by_name[name], FORGET) for name in ("near", "low", "high", "torn")}
    assert said == {"near": INSIDE, "low": BELOW, "high": ABOVE, "torn": MIXED}
    assert board.called(by_name["near"], UTILITY) is None
    text = retrained_part(board)
    assert "| near | 1 of 1 |  |" in text
    assert "| low | 0 of 1 | forget: exact match: 0.0, 1.0, below [26.0, 36.0] |" in text
    assert "retrain |" not in text
    assert "| 30.5 [20.0, 41.0] ≈ |" in results_part(board)
    # Low is no aim.
    assert results_part(board).count("| forget: exact match, % |") == 1
    # What is further below than the spread is no better than what is inside.
    assert board.ranks[FORGET]["near"][0] == 1
    assert board.ranks[FORGET]["low"][0] == 2 + 1


def test_a_spread_says_which_models_it_is_of_and_that_they_were_made_in_several_ways():
    golds = [baseline("target", 1.0, 0.9), baseline("retrained", 0.4, 0.9)]
    runs = [*retrained(0.30, 0.31), *seeds("npo", 0.0)]
    board = board_of(sweep_of(runs, golds))
    assert board.retrained == {"given": 1, "retrain": 2}
    assert "in the spread of 3 retrained models (given: 1; retrain: 2)" in results_part(board)
    text = retrained_part(board)
    assert "3 retrained models (given: 1; retrain: 2) never saw" in text
    assert "not all made in one way" in text
    assert "| given: 40.0; retrain: 30.0, 31.0 |" in text
    # Models of one way are told without that.
    alone = board_of(sweep_of([*retrained(0.30, 0.31, 0.32), *seeds("npo", 0.0)], golds[:1]))
    assert alone.retrained == {"retrain": 3}
    assert "not all made in one way" not in retrained_part(alone)


def test_a_spread_that_holds_the_target_too_calls_nobody_like_retrained():
    runs = [*retrained(0.1, 0.5), *seeds("same", 0.9, 0.9), *seeds("low", 0.2, 0.3)]
    board = board_of(sweep_of(runs, [baseline("target", 0.95, 0.9), baseline("retrained", 0.9, 0.9)]))
    assert board.spreads[FORGET].has(0.95)
    assert [board.called(row, FORGET) for row in board.rows] == [None] * 3
    text = retrained_part(board)
    assert "| [0.0, 100.0] | no: the target is inside |" in text
    assert "| same | 0 of 0 |  |" in text
    assert "≈ |" not in results_part(board)


# What comes back


def test_what_is_left_by_audit_and_at_worst():
    hard = with_attack(seeds("hard", 0.0, 0.0), attack(0.9, 0.8, 1.0), attack(0.7, 0.5, 0.9))
    gone = with_attack(
        seeds("gone", 0.0, 0.0), *[attack(0.01, -0.02, 0.04, verdict="not recovered within budget")] * 2
    )
    open_ = with_attack(seeds("open", 0.0, 0.0), attack(0.1, 0.0, 0.2), attack(None, 0, 0, verdict="unresolved"))
    board = board_of(sweep_of([*hard, *gone, *open_]))
    lines = {line.split(" | ")[0]: line for line in robustness_part(board).splitlines()}
    assert lines["| hard"] == "| hard | 0.80 [0.50, 1.00] | 0.80 [0.50, 1.00] | suppressed (relearn) |"
    assert lines["| gone"].endswith("| 0.01 [-0.02, 0.04] | not recovered within budget (relearn) |")
    assert "| 0.10 [0.00, 0.20] (1 unresolved) |" in lines["| open"]
    # An unresolved run leaves every rank open.
    assert board.ranks["remaining"] == {"hard": (2, 3), "gone": (1, 2), "open": (1, 3)}


def audit_of(kind, verdict, open_=(), **parts):
    """An audit of several scores: `(value, low, high)` each, or `(estimate, half)` of one that is open."""
    found = {}
    for name, ends in parts.items():
        if len(ends) == 2:
            reason = {"status": "unresolved", "estimate": ends[0], "half": ends[1]}
            found[f"{kind}/{name}/remaining"] = {**metric(None), "details": reason}
        else:
            found[f"{kind}/{name}/remaining"] = {**metric(ends[0]), "interval": [*ends[1:]], "details": {}}
    known = {name: one for name, one in found.items() if one["value"] is not None}
    which = max(known or found, key=lambda name: known[name]["interval"][1] if known else 0)
    details = {"which": which.partition("/")[2], "verdict": verdict, "open": [f"{name}/remaining" for name in open_]}
    details |= {} if known else {"status": "unresolved"}
    return found | {f"{kind}/worst/remaining": {**found[which], "details": details}}


SURE, NOT, OPEN = "suppressed", "not recovered within budget", "unresolved"


def test_what_an_audit_leaves_open_is_not_hidden_by_what_it_resolved():
    # Of lunar in the embedded world: no exact answer in NF4, and probabilities 0.45 ± 0.27 of the way back.
    parts = {"exact_match": (0.0, 0.0, 0.6), "probability": (0.45, 0.27)}
    lunar = with_attack(seeds("lunar", 0.0), audit_of("quantize", OPEN, ["probability"], **parts))
    gone = with_attack(seeds("gone", 0.0), audit_of("quantize", NOT, probability=(0.0, -0.01, 0.01)))
    board = board_of(sweep_of([*lunar, *gone]))
    lines = {line.split(" | ")[0]: line for line in robustness_part(board).splitlines()}
    assert lines["| lunar"] == "| lunar | unresolved | unresolved | unresolved (quantize) |"
    assert board.ranks["remaining"]["lunar"] == (1, 2)
    # In a sweep's own table, too.
    row = next(row for row in board.rows if row.name == "lunar")
    assert text_of("quantize/worst/remaining", cell_of(row.points, "quantize/worst/remaining")) == "unresolved"


def test_an_unresolved_audit_beside_resolved_ones_leaves_open_what_is_left_at_worst():
    small = audit_of("sampling", NOT, exact=(0.0, -0.01, 0.01))
    undecided = audit_of("relearn", OPEN, probability=(0.3, 0.4))
    open_ = with_attack(seeds("open", 0.0), small | undecided)
    low = audit_of("relearn", SURE, probability=(0.3, 0.25, 0.35))
    shut = with_attack(seeds("shut", 0.0), small | low)
    # What surely came back is a value; how much more it is at most, the open score says.
    hard = audit_of("relearn", SURE, ["exact_match"], probability=(0.9, 0.8, 1.0), exact_match=(0.5, 0.9))
    hard = with_attack(seeds("hard", 0.0), small | hard)
    board = board_of(sweep_of([*open_, *shut, *hard]))
    lines = {line.split(" | ")[0]: line.split(" | ") for line in robustness_part(board).splitlines()}
    assert lines["| open"][1:4] == ["0.00 [-0.01, 0.01]", "unresolved", "unresolved"]
    assert lines["| shut"][3] == "0.30 [0.25, 0.35]"
    assert lines["| hard"][3] == "0.90 [0.80, 1.40]"
    assert board.ranks["remaining"] == {"open": (1, 3), "shut": (1, 2), "hard": (2, 3)}


def test_worst_of_all_is_no_lower_than_any_audit():
    # The wider interval reaches higher, the narrower one's value is higher.
    found = audit_of("relearn", SURE, a=(0.9, 0.8, 1.0)) | audit_of("representation", SURE, a=(0.7, 0.4, 1.1))
    board = board_of(sweep_of(with_attack(seeds("one", 0.0), found)))
    assert "| 0.90 [0.80, 1.00] | 0.70 [0.40, 1.10] | 0.90 [0.80, 1.10] |" in robustness_part(board)


def test_methods_are_held_against_the_audits_that_all_have():
    small, hard = audit_of("sampling", NOT, a=(0.0, -0.01, 0.01)), audit_of("relearn", SURE, a=(0.9, 0.8, 1.0))
    runs = [*with_attack(seeds("both", 0.0), small | hard), *with_attack(seeds("less", 0.0), small)]
    board = board_of(sweep_of(runs))
    assert board.common == ["sampling"]
    assert board.ranks["remaining"] == {"both": (1, 2), "less": (1, 2)}
    text = robustness_part(board)
    assert "the highest of sampling," in text
    lines = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines()}
    assert lines["| less"][1:4] == ["0.00 [-0.01, 0.01]", "–", "0.00 [-0.01, 0.01]"]
    # A seed that was not attacked at all is missing in its method's means.
    half = with_attack(seeds("half", 0.0, 0.0), small, {})
    assert "| half | 0.00 [-0.01, 0.01] (1 missing) |" in robustness_part(board_of(sweep_of([*half, *runs])))


def test_an_audit_under_which_the_original_shows_nothing_leaves_nothing_open():
    idle = audit_of("sampling", OPEN, a=(0.0, 0.5))
    for one in idle.values():
        one["details"] |= {"idle": True}
    found = idle | audit_of("relearn", NOT, a=(0.0, -0.01, 0.01))
    board = board_of(sweep_of(with_attack(seeds("one", 0.0), found)))
    assert "| unresolved | 0.00 [-0.01, 0.01] | 0.00 [-0.01, 0.01] |" in robustness_part(board)


def test_where_one_method_was_not_audited_it_is_named_and_no_rank_counts_it():
    runs = [*with_attack(seeds("one", 0.0), attack(0.9, 0.8, 1.0)), *seeds("other", 0.0)]
    sweep = sweep_of(runs)
    board = board_of(sweep)
    assert "remaining" not in board.counted
    assert "| other | – | – |" in robustness_part(board)


def test_what_was_left_before_is_not_drawn_where_no_audit_says_it():
    told = with_attack(seeds("told", 0.0), attack(0.9, 0.8, 1.0, before=0.1))
    silent = with_attack(seeds("silent", 0.0), attack(0.7, 0.5, 0.9, before=None))
    rows = {row.name: row for row in board_of(sweep_of([*told, *silent])).rows}
    assert {name: _before_after(row) for name, row in rows.items()} == {"told": (0.1, 0.9), "silent": (None, 0.7)}


# The page


@pytest.fixture
def sweep():
    runs = [*retrained(0.0, 0.01), *seeds("npo", 0.0, 0.1, privacy=attacked(0.2)), *seeds("ga", 0.6, 0.7, utility=0.3)]
    for label in ("retrain", "npo", "ga"):
        own = [run for run in runs if run["label"] == label]
        with_attack(own, attack(0.9, 0.8, 1.0, before=0.1), attack(0.7, 0.5, 0.9))
    machine = {"accelerator": None, "processor": "Z80", "processors": 2, "threads": 1}
    for run in runs[:3]:
        versions = {"torch": "2.0", "transformers": "5.0"}
        run["made"] = {"created": "2026-11-30T10:00:00", "machine": machine, "versions": versions}
    return sweep_of(runs, missing=[{"name": "npo-lost", "why": "no finished report"}], file="recipes/x.yaml")


@pytest.mark.drawn
def test_the_command_writes_page_and_figures(sweep, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    page = tmp_path / "board.md"
    assert main(["report", str(tmp_path / "sweep.json"), "--leaderboard", str(page)]) == 0
    text = page.read_text()
    assert "    hf-unlearn sweep recipes/x.yaml\n" in text
    assert "Runs of 2026-11-30 on Z80, 2 processors, 1 threads; not recorded for 3 runs (torch 2.0" in text
    assert all(f"\n## {title}\n" in text for title in ("Results", "Ranks", "Like retrained?", "Missing"))
    assert "- npo-lost: no finished report" in text
    for name in ("utility", "attack"):
        assert f"![{name}](board_{name}.png)" in text
        assert (tmp_path / f"board_{name}.png").stat().st_size > 10_000
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert str(page) in capsys.readouterr().out
    # Written again by the same command.
    assert main(["report", str(tmp_path / "sweep.json"), "--leaderboard", str(page)]) == 0


def test_a_page_of_somebody_s_own_keeps_all_but_the_marked_parts(sweep, tmp_path):
    page = tmp_path / "own.md"
    page.write_text(
        "# Mine\n\nBefore.\n\n<!-- leaderboard: robustness -->\nold\n<!-- leaderboard: end -->\n\nBetween.\n\n"
        "<!-- leaderboard: ranks -->\n<!-- leaderboard: end -->\n\nAfter.\n"
    )
    write_leaderboard(sweep, page, "the command")
    first = page.read_text()
    assert first.startswith("# Mine\n\nBefore.\n\n<!-- leaderboard: robustness -->\n\n`remaining` at worst")
    assert "old" not in first.splitlines()
    assert first.endswith("<!-- leaderboard: end -->\n\nAfter.\n")
    assert "\nBetween.\n" in first
    write_leaderboard(sweep, page, "the command")
    assert page.read_text() == first


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# Mine\n", "was not written by this command"),
        ("<!-- leaderboard: x -->\n<!-- leaderboard: end -->", "called 'x'"),
    ],
)
def test_a_page_without_marks_is_not_written_over(sweep, tmp_path, text, told):
    page = tmp_path / "own.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=told):
        write_leaderboard(sweep, page, "the command")
    assert page.read_text() == text


def test_only_one_sweep_has_a_page(sweep, tmp_path, capsys):
    assert main(["report", str(tmp_path), "--leaderboard", str(tmp_path / "x.md")]) == 2
    assert "--leaderboard writes the page of one sweep" in capsys.readouterr().err
    (tmp_path / "sweep.json").write_text(json.dumps(sweep_of([])))
    assert main(["report", str(tmp_path / "sweep.json"), "--leaderboard", str(tmp_path / "x.md")]) == 2
    assert "is finished: there is nothing to show" in capsys.readouterr().err
