# SPDX-License-Identifier: Apache-2.0
"""What the results of models say of an audit, the rule for gates, and the command."""

import itertools
import json

import numpy as np
import pytest
from small import builder

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.audit.result import MetricResult
from hf_unlearn.audit.robustness.recovery import SUPPRESSED, UNRESOLVED
from hf_unlearn.cli.main import main
from hf_unlearn.report.meta import render_meta, show_meta
from hf_unlearn.runs.blocks import attack_kinds
from hf_unlearn.runs.meta import building, evaluate
from hf_unlearn.runs.meta.arguments import PLANS, MetaArguments, Plan
from hf_unlearn.runs.meta.evaluate import evaluate_audits
from hf_unlearn.runs.meta.members import LOCKS, POOLS, members_of
from hf_unlearn.runs.meta.scores import auc_interval, may_gate, rank_correlation, separation
from hf_unlearn.runs.meta.summary import HEADLINE, summary


def test_a_constant_score_tells_nothing_and_a_good_one_everything():
    constant, good = separation([0.4] * 6, [0.4] * 6), separation([0.5, 0.6, 0.9], [0.4, 0.1, -2.0, 0.0])
    assert constant["auc"] == pytest.approx(0.5)
    assert constant["p"] == 1.0
    assert good["auc"] == pytest.approx(1.0)
    assert good["p"] == pytest.approx(2 / 35)
    knowing, ignorant = [1.0, 0.3, 0.3], [0.3, 0.0]
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(knowing, ignorant)]
    assert separation(knowing, ignorant)["auc"] == pytest.approx(np.mean(wins))
    assert separation([], [1.0]) is None


def test_the_interval_of_an_auc_holds_it_in_95_of_100_draws():
    from scipy.stats import norm

    for n, auc in ((6, 0.8), (20, 0.95)):
        rng, held = np.random.default_rng(0), 0
        for _ in range(300):
            x, y = rng.normal(2**0.5 * norm.ppf(auc), 1, n), rng.normal(0, 1, n)
            low, high = auc_interval(float((x[:, None] > y).mean()), n, n)
            held += low <= auc <= high
        assert 0.92 <= held / 300 <= 0.99


def test_pools_that_are_apart_leave_an_interval_that_grows_with_fewer_models():
    assert auc_interval(1.0, 6, 6) == (pytest.approx(0.689, abs=1e-3), 1.0)
    low, high = auc_interval(0.0, 6, 6)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.689, abs=1e-3)
    sizes = PLANS["full"].sizes
    m, n = (sum(sizes[pool] for pool in pools) for pools in (("P0", "P1", "P2"), ("N0", "N1", "N2", "N3")))
    # The full preset can decide.
    assert auc_interval(1.0, m, n)[0] > 0.9


@pytest.mark.parametrize(
    ("interval", "alarms", "undefined", "said"),
    [
        ((0.91, 1.0), 0, 0, "yes"),
        ((0.91, 1.0), 1, 0, "no"),
        ((0.91, 1.0), 0, 1, "open"),
        ((0.7, 1.0), 0, 0, "open"),
        ((0.3, 0.85), 0, 0, "no"),
        ((0.3, 0.85), 0, 2, "no"),
    ],
)
def test_the_rule_for_gates(interval, alarms, undefined, said):
    assert may_gate({"auc": 0.5, "interval": interval, "p": 1.0}, alarms, undefined)[0] == said


def test_what_is_undefined_in_a_pool_does_not_gate():
    assert may_gate(None, 0, 3)[0] == "open"


def results(score, sizes, alarm=lambda score: score > 0.2):
    """Hand-made results: `score` of each model."""
    found = []
    for member in members_of(sizes):
        value = score(member)
        alarmed = value is not None and alarm(value)
        reading = {"score": value, "interval": None, "alarm": alarmed, "open": value is None, "why": None}
        made = {"made": {"seconds": 2.0, "metrics": {HEADLINE: reading}}}
        about = {"name": member.name, "pool": member.pool, "share": member.share, "lock": member.lock}
        found.append({**about, "results": made})
    return found


def test_the_rows_of_hand_made_results():
    full = PLANS["full"].sizes
    (row,) = summary(results(lambda member: member.share, full), {"made": [0.1, 0.3]})
    assert (row["separation"]["auc"], row["spearman"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (row["may_gate"], row["seconds"], row["retest"]) == ("yes", 2.0, {"models": 2, "largest": 0.3})
    assert row["locks"] == {lock: {"alarms": 3, "models": 3, "open": 0, "mean": 1.0} for lock in LOCKS}
    (constant,) = summary(results(lambda member: 0.1, full))
    assert (constant["separation"]["auc"], constant["spearman"]) == (pytest.approx(0.5), None)
    assert constant["may_gate"] == "no"
    assert not any(found["alarms"] for found in constant["locks"].values())
    (false,) = summary(results(lambda member: 0.3 if member.name == "N3-0" else member.share, full))
    assert false["alarms"]["N3"]["alarms"] == 1
    assert false["may_gate"] == "no"
    (silent,) = summary(results(lambda member: None if member.pool == "N1" else member.share, full))
    assert silent["undefined"] == 6
    # No alarm in none is no 0 of 6.
    assert silent["alarms"]["N1"] == {"alarms": 0, "models": 0, "open": 6, "mean": None}
    assert silent["may_gate"] == "open"


def test_a_metric_that_a_model_lacks_is_undefined_there():
    found = results(lambda member: member.share, PLANS["quick"].sizes)
    found[0]["results"]["made"]["metrics"]["lens/remaining"] = {
        "score": 1.0, "interval": None, "alarm": True, "open": False, "why": None
    }  # fmt: skip
    rows = {row["metric"]: row for row in summary(found)}
    assert (rows["lens/remaining"]["undefined"], rows["lens/remaining"]["level"]) == (11, "part")


# An audit of which a part is open


def part(value, estimate=None, **details):
    """A `remaining` of a part: resolved, or with an estimate only."""
    interval = None if value is None else (value - 0.01, value + 0.01)
    details |= {} if estimate is None else {"estimate": estimate, "reason": f"{estimate} leaves open"}
    return MetricResult("part", value, 8, "lower", interval=interval, details=details)


def worst(value, which, said, *unknown):
    details = {"which": which, "verdict": said, **({"open": [*unknown]} if unknown else {})}
    details |= {} if value is not None else {"reason": "leaves open"}
    interval = None if value is None else (value - 0.01, value + 0.01)
    return MetricResult(HEADLINE, value, 8, "lower", interval=interval, details=details)


def read_of(headline, **parts):
    named = {f"{name}/remaining": found for name, found in parts.items()}
    return evaluate.reading(headline, {HEADLINE: headline, **named})


def test_a_headline_with_an_open_part_is_not_its_resolved_part():
    exact, lens = part(0.02), part(None, 0.7)
    found = read_of(worst(0.02, "exact/remaining", UNRESOLVED, "lens/remaining"), exact=exact, lens=lens)
    assert (found["score"], found["interval"], found["alarm"], found["open"]) == (0.7, None, False, True)
    assert "lens/remaining" in found["why"]
    # Below what is resolved it changes nothing.
    found = read_of(worst(0.9, "exact/remaining", SUPPRESSED, "lens/remaining"), exact=part(0.9), lens=lens)
    assert (found["score"], found["alarm"], found["open"]) == (0.9, True, False)
    assert found["interval"] == pytest.approx([0.89, 0.91])
    # Nothing resolved: the highest estimate, whichever part comes first; none where there is none.
    parts = {"exact": part(None, 0.1), "lens": lens}
    names = [f"{name}/remaining" for name in parts]
    assert read_of(worst(None, names[0], UNRESOLVED, *names), **parts)["score"] == 0.7
    silent = {"exact": part(None, reason="too little was there to forget", idle=True)}
    assert read_of(worst(None, names[0], UNRESOLVED), **silent)["score"] is None


def test_a_table_tells_what_is_open_from_what_was_passed():
    models = results(lambda member: 0.1, PLANS["quick"].sizes, alarm=lambda score: False)
    for model in models:
        model["results"]["made"]["metrics"][HEADLINE]["open"] = model["lock"] == "head" or model["pool"] == "N1"
    (row,) = summary(models)
    assert (row["locks"]["head"]["open"], row["locks"]["idk"]["open"], row["alarms"]["N1"]["open"]) == (1, 0, 1)
    found = {"title": "t", "models": models, "pools": POOLS, "locks": LOCKS, "rows": [row]}
    assert "| 0/1 (0.10; 1 open) | 0/1 (0.10) |" in render_meta(found)


def test_what_is_printed_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show_meta({"rows": summary(results(lambda member: member.share, PLANS["full"].sizes))})
    said = capsys.readouterr().out
    assert "…" not in said
    assert "15/15" in said
    assert "0/24" in said


COMPARED = [name for name in attack_kinds() if AUDITS[name].original_is_measured]
# Attacks that search or ask in many ways, made short. The others are tried in the embedded world.
SHORT = {
    "prompts": {"transforms": ["filler"]},
    "soft_prompt": {"steps": 1},
    "gcg": {"budget_tokens": 400, "max_tokens": 2, "width": 2, "top_k": 4},
}


def test_every_attack_that_says_how_much_is_left_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_outputs", lambda *args: ())
    audits = {name: {**own, "seeds": [0]} for name, own in SHORT.items()}
    plan = Plan({"P0": 2, "N0": 2}, audits, retest=0, steps=2)
    rows = {row["audit"]: row for row in evaluate_audits(plan, builder().world, tmp_path, False)["rows"][:3]}
    assert [*rows] == [*SHORT]
    for name, row in rows.items():
        assert row["metric"] == HEADLINE
        assert row["seconds"] > 0, name
        # Models that were hardly taught: there was too little to forget.
        assert row["undefined"] == 4


def test_presets_have_settings_for_every_attack_that_says_how_much_is_left():
    for preset in PLANS:
        assert [*MetaArguments(COMPARED, preset).plan.audits] == COMPARED
    with pytest.raises(ValueError, match="'two_checkpoint' does not say how much is left"):
        MetaArguments(["two_checkpoint"])


def test_ranks_need_something_to_rank():
    assert rank_correlation([0, 0.5, 1], [0.1, 0.2, 0.9]) == pytest.approx(1.0)
    assert rank_correlation([0, 0.5, 1], [0.1, 0.1, 0.1]) is None
    assert rank_correlation([0, 1], [0.1, 0.2]) is None


def test_members_have_seeds_of_their_own_and_shares_about_a_half():
    members = members_of(PLANS["full"].sizes)
    made = [member for member in members if member.lock is None]
    assert len({member.seed for member in made}) == len(made)
    assert np.mean([member.share for member in members if member.pool == "P2"]) == pytest.approx(0.5)
    assert {member.lock for member in members if member.pool == "P3"} == {*LOCKS}
    with pytest.raises(ValueError, match="fewer than 2 models that know"):
        members_of({"P0": 1, "N0": 2})
    with pytest.raises(ValueError, match="P3=2 are made from as many of P0"):
        members_of({"P0": 1, "P1": 1, "P3": 2, "N0": 2})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--audits", "quantise"], "Did you mean 'quantize'"),
        (["--audits", "privacy"], "does not say how much is left"),
        (["--preset", "fast"], "quick"),
        (["--model_name_or_path", "x"], "model_name_or_path"),
    ],
)
def test_bad_input_is_one_line(words, told, capsys):
    assert main(["audit", "meta", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_a_preset_takes_the_audits_that_are_asked_for():
    plan = MetaArguments(["sampling", "quantize"], "quick").plan
    assert [*plan.audits] == ["sampling", "quantize"]
    assert plan.sizes == PLANS["quick"].sizes


SIZES = {"P0": 1, "P1": 1, "N0": 1, "N1": 1, "N3": 1}
TINY = Plan(SIZES, {"sampling": {}}, steps=30, learning_rate=5e-3)


def test_what_was_killed_goes_on(tmp_path, monkeypatch):
    """Models and results that were made are found again; a killed build leaves nothing that is taken for one."""
    made, measured, kills = [], [], [1]
    make = building.Builder._made

    def killed(self, member):
        if member.pool == "N1" and kills:
            kills.clear()
            raise KeyboardInterrupt
        made.append(member.name)
        return make(self, member)

    monkeypatch.setattr(building.Builder, "_made", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_audits(TINY, builder().world, tmp_path, progress=False)
    before = [*made]
    assert before == ["original", "retrained", "P0-0", "P1-0", "N0-0"]
    audited = evaluate.output_metrics
    monkeypatch.setattr(evaluate, "output_metrics", lambda *args: measured.append(1) or audited(*args))
    evaluate_audits(TINY, builder().world, tmp_path, progress=False)
    assert made == [*before, "N1-0", "N3-0"]
    assert len(measured) == 7
    again = evaluate_audits(TINY, builder().world, tmp_path, progress=False)
    assert len(made) == len(measured) == 7
    assert json.loads((tmp_path / "meta.json").read_text()) == json.loads(json.dumps(again))
    text = (tmp_path / "meta.md").read_text()
    assert text == render_meta(again)
    assert all(f"- {pool} (" in text for pool in POOLS)
    assert "| `sampling` |" in text


def test_settings_that_an_audit_refuses_are_told_before_a_model_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(building.Builder, "_made", None)
    with pytest.raises(ValueError, match="quantize"):
        evaluate_audits(Plan(SIZES, {"quantize": {"formats": ["nf5"]}}), builder().world, tmp_path, progress=False)
