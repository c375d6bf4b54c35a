# SPDX-License-Identifier: Apache-2.0
"""Gates: what is passed, failed, unresolved and missing; intervals of differences; what a pipeline is told."""

import json
import math

import numpy as np
import pytest
import yaml

from hf_unlearn.audit import Audit
from hf_unlearn.audit.privacy.compare import rate_difference
from hf_unlearn.audit.result import mean_result
from hf_unlearn.cli.main import main
from hf_unlearn.report.gates.evaluate import judge
from hf_unlearn.report.gates.numbers import difference, paired_difference
from hf_unlearn.report.gates.spec import FOLDER, default_thresholds, load_gates, read_gates
from hf_unlearn.report.gates.view import asked


def metric(value, low=None, high=None, n=100, **more):
    interval = None if low is None else [low, high]
    return {"value": value, "n": n, "interval": interval, "direction": "none", "variant": None, **more}


def make_report(mine, target=None, retrained=None, **others):
    """A report whose models have the given metrics; `others` are further unlearned models."""
    found = [("target", "target", target), ("retrained", "retrained", retrained), ("mine", "unlearned", mine)]
    found += [(name, "unlearned", metrics) for name, metrics in others.items()]
    return {
        "schema_version": 1,
        "title": "A run",
        "created": "2026-01-01T00:00:00+00:00",
        "suite": "vqa_world",
        "settings": {},
        "versions": {},
        "notes": [],
        "models": [
            {"name": name, "kind": kind, "method": None, "path": f"models/{name}", "metrics": metrics, "answers": []}
            for name, kind, metrics in found
            if metrics is not None
        ],
    }


def make_privacy(mine, retrained=None, path="models/mine"):
    found = [("retrained", "retrained", "models/retrained", retrained), ("it", "attacked", path, mine)]
    return {
        "schema_version": 1,
        "models": [
            {"name": name, "kind": kind, "path": path, "metrics": metrics, "settings": {},
             "scores": dict.fromkeys(key.split("/")[0] for key in metrics)}
            for name, kind, path, metrics in found
            if metrics is not None
        ],
    }  # fmt: skip


def outcome(about, report, privacy=None):
    (model,) = judge(report, read_gates({"gate": about}), privacy)["models"]
    return model["outcomes"][0]


# What a gate says


@pytest.mark.parametrize(
    ("low", "high", "bounds", "status"),
    [
        (0.1, 0.2, {"at_most": 0.3}, "passed"),
        (0.1, 0.3, {"at_most": 0.3}, "passed"),
        (0.1, 0.31, {"at_most": 0.3}, "unresolved"),
        (0.3, 0.5, {"at_most": 0.3}, "unresolved"),
        (0.31, 0.5, {"at_most": 0.3}, "failed"),
        (0.5, 0.6, {"at_least": 0.5}, "passed"),
        (0.4, 0.6, {"at_least": 0.5}, "unresolved"),
        (0.3, 0.4, {"at_least": 0.5}, "failed"),
        (0.3, 0.4, {"at_least": 0.2, "at_most": 0.5}, "passed"),
        (0.1, 0.4, {"at_least": 0.2, "at_most": 0.5}, "unresolved"),
        (0.1, 0.9, {"at_least": 0.2, "at_most": 0.5}, "unresolved"),
        (0.1, 0.15, {"at_least": 0.2, "at_most": 0.5}, "failed"),
        (0.6, 0.9, {"at_least": 0.2, "at_most": 0.5}, "failed"),
    ],
)
def test_the_whole_interval_decides(low, high, bounds, status):
    report = make_report({"test/dominant_answer": metric((low + high) / 2, low, high)})
    found = outcome({"metric": "test/dominant_answer", **bounds}, report)
    assert (found["status"], found["interval"]) == (status, (low, high))
    width = f"the interval is {high - low:.2g} wide" if status == "unresolved" else None
    assert found["why"] == width


def test_a_value_without_interval_is_never_passed():
    report = make_report({"test/dominant_answer": metric(0.1)})
    found = outcome({"metric": "test/dominant_answer", "at_most": 0.5}, report)
    assert (found["status"], found["value"], found["why"]) == ("unresolved", 0.1, "no interval")


KNOWN = {"forget/accuracy": metric(0.1, 0.05, 0.15)}
AGAINST = {"metric": "forget/accuracy", "against": "retrained", "within": 0.2}


@pytest.mark.parametrize(
    ("about", "report", "why"),
    [
        ({"metric": "test/accuracy", "at_least": 0.5}, make_report(KNOWN), "not measured"),
        (AGAINST, make_report({"forget/accuracy": metric(None, n=0)}, retrained=KNOWN), "undefined"),
        (AGAINST, make_report(KNOWN, target=KNOWN), "the report has no retrained model"),
        (AGAINST, make_report(KNOWN, retrained={}), "retrained: not measured"),
        ({**AGAINST, "against": "target"}, make_report(KNOWN, retrained=KNOWN), "the report has no target model"),
        ({"metric": "privacy/loss/auc", "at_most": 0.6}, make_report(KNOWN), "no privacy.json"),
    ],
)
def test_what_is_missing_is_never_passed(about, report, why):
    found = outcome(about, report)
    assert (found["status"], found["why"], found["value"]) == ("missing", why, None)


def test_each_unlearned_model_has_its_own_outcomes():
    good, bad = (
        {"test/accuracy": metric(v, v - 0.02, v + 0.02), "forget/accuracy": metric(0.5, 0.4, 0.6)} for v in (0.9, 0.5)
    )
    spec = {
        "kept": {"metric": "test/accuracy", "against": "target", "at_least": -0.1},
        "forgot": {"metric": "forget/accuracy", "at_most": 0.7},
    }
    result = judge(make_report(good, target=good, second=bad), read_gates(spec))
    assert [model["name"] for model in result["models"]] == ["mine", "second"]
    assert [model["status"] for model in result["models"]] == ["passed", "failed"]
    assert [one["status"] for one in result["models"][1]["outcomes"]] == ["failed", "passed"]
    assert result["status"] == "failed"
    with pytest.raises(ValueError, match="no unlearned model"):
        judge({**make_report(good), "models": make_report(good, target=good)["models"][:1]}, read_gates(spec))


# Differences


def test_both_intervals_bound_a_difference_from_all_sides():
    found = difference("test/accuracy", metric(0.6, 0.5, 0.7), metric(0.4, 0.35, 0.5, n=80))
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0, 0.35))
    assert (found.n, found.method) == (80, "both intervals")
    assert difference("test/accuracy", metric(0.6, 0.5, 0.7), metric(0.4)).interval is None


def test_paired_shares_have_the_interval_that_attacks_have():
    rng = np.random.default_rng(0)
    mine, other = (rng.integers(0, 2, 40).astype(float).tolist() for _ in range(2))
    expected = rate_difference("tpr", mine, other)
    found = paired_difference([a - b for a, b in zip(mine, other, strict=True)], shares=True)
    assert found.value == pytest.approx(expected.value)
    assert found.interval == pytest.approx(expected.interval)


def test_no_difference_in_few_rows_is_no_certainty():
    few, many = paired_difference([0.0] * 10, shares=True), paired_difference([0.0] * 1000, shares=True)
    assert few.interval[1] > 0.2
    assert few.interval[0] == -few.interval[1]
    assert 0 < many.interval[1] < 0.01


def test_paired_values_without_bounds_have_students_interval():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    mine, other = rng.normal(3, 2, 12), rng.normal(1, 2, 12)
    interval = ttest_rel(mine, other).confidence_interval()
    assert paired_difference((mine - other).tolist(), shares=False).interval == pytest.approx(tuple(interval))
    assert paired_difference([2.0, 2.0], shares=False).interval is None


@pytest.mark.parametrize("kind", ["answers", "probabilities"])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(kind):
    rng, held, runs, n = np.random.default_rng(0), 0, 1000, 60
    for _ in range(runs):
        base = rng.random(n)
        if kind == "answers":
            items, truth = (rng.random(n) < 0.15).astype(float) - (rng.random(n) < 0.05), 0.1
        else:
            items, truth = base * 0.3 * rng.random(n), 0.075
        low, high = paired_difference(items.tolist(), shares=True).interval
        held += low <= truth <= high
    assert held / runs > 0.94


def test_items_are_paired_and_undefined_ones_left_out():
    mine = metric(0.5, 0.1, 0.9, n=4, per_item=[1.0, 0.0, None, 1.0, 0.0])
    other = metric(0.5, 0.1, 0.9, n=4, per_item=[1.0, None, 0.0, 0.0, 0.0])
    found = difference("test/accuracy", mine, other)
    assert (found.n, found.value, found.method) == (3, pytest.approx(1 / 3), "paired")
    assert difference("test/accuracy", mine, {**other, "per_item": [1.0]}).method == "both intervals"


# Attacks


def test_a_gate_on_all_attacks_says_what_the_worst_says():
    mine = {f"{name}/auc": metric(v, v - 0.05, v + 0.05) for name, v in (("loss", 0.5), ("min-k++", 0.8), ("x", 0.6))}
    mine["loss/retain_auc"] = metric(0.99, 0.98, 1.0)
    gate = {"metric": "privacy/*/auc", "at_most": 0.7}
    found = outcome(gate, make_report(KNOWN), make_privacy(mine))
    assert (found["status"], found["metric"]) == ("failed", "privacy/min-k++/auc")
    del mine["min-k++/auc"]
    found = outcome(gate, make_report(KNOWN), make_privacy(mine))
    assert (found["status"], found["metric"]) == ("passed", "privacy/x/auc")
    mine["loss/auc"] = metric(None, n=0)
    found = outcome(gate, make_report(KNOWN), make_privacy(mine))
    assert (found["status"], found["metric"], found["why"]) == ("missing", "privacy/loss/auc", "undefined")


def test_attacks_are_held_against_the_retrained_models_on_the_same_rows():
    mine = {"loss/auc": metric(0.7, 0.5, 0.9), "loss/auc/vs_retrained": metric(0.02, -0.03, 0.07, n=60)}
    gold = {"loss/auc": metric(0.68, 0.48, 0.88)}
    gate = {"metric": "privacy/loss/auc", "against": "retrained", "within": 0.1}
    report = make_report(KNOWN, retrained=KNOWN)
    found = outcome(gate, report, make_privacy(mine, gold))
    assert (found["status"], found["interval"], found["n"]) == ("passed", (-0.03, 0.07), 60)
    del mine["loss/auc/vs_retrained"]
    found = outcome(gate, report, make_privacy(mine, gold))
    assert found["status"] == "unresolved"
    assert found["interval"] == pytest.approx((-0.38, 0.42))
    assert outcome(gate, report, make_privacy(mine))["status"] == "missing"


def test_a_rate_that_too_few_rows_resolve_is_missing():
    details = {"status": "unresolved", "n_calibration": 30, "needs_calibration": 99}
    attacked = make_privacy({"loss/tpr@1e-2": metric(None, n=0, details=details)})
    found = outcome({"metric": "privacy/loss/tpr@1e-2", "at_most": 0.5}, make_report(KNOWN), attacked)
    assert (found["status"], found["why"]) == ("missing", "30 of 99 non-members that the rate needs")


def test_attacked_models_are_found_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate, good = {"metric": "privacy/loss/auc", "at_most": 0.7}, {"loss/auc": metric(0.5, 0.4, 0.6)}
    for path, status in ((str(tmp_path / "models" / "mine"), "passed"), ("models/other", "missing")):
        assert outcome(gate, make_report(KNOWN), make_privacy(good, path=path))["status"] == status


# What is asked


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"metric": "forget/accuracy", "at_mots": 0.1}, "unknown key 'at_mots'. Did you mean 'at_most'?"),
        ({"at_most": 0.1}, "needs `metric: NAME`"),
        ("forget/accuracy", "needs `metric: NAME`"),
        ({"metric": "forget/accuracy"}, "give `within`, or `at_most`"),
        ({**AGAINST, "at_most": 0.1}, "give `within`, or `at_most`"),
        ({"metric": "forget/accuracy", "within": 0.1}, "`within` is of a difference"),
        ({**AGAINST, "against": "none"}, "against='none'; allowed: retrained, target, or leave it out"),
        ({**AGAINST, "within": "5%"}, "within='5%' is no number"),
        ({**AGAINST, "within": math.nan}, "within=nan is no number"),
        ({**AGAINST, "within": True}, "within=True is no number"),
        ({**AGAINST, "within": 0}, "nothing could pass"),
        ({**AGAINST, "within": -0.1}, "nothing could pass"),
        ({**AGAINST, "within": 1}, "let everything pass"),
        ({"metric": "forget/accuracy", "at_most": 5}, "let everything pass"),
        ({"metric": "forget/accuracy", "at_most": -0.1}, "nothing could pass"),
        ({"metric": "forget/accuracy", "at_least": 1}, "nothing could pass"),
        ({"metric": "forget/logit_mse", "at_least": 0}, "let everything pass"),
        ({"metric": "forget/accuracy", "at_least": 0.5, "at_most": 0.4}, "nothing could pass"),
        ({"metric": "forget_quality", "at_least": 0.05}, "is a p-value"),
        ({"metric": "privacy/loss/auc/vs_retrained", "at_most": 0.1}, "Hold 'privacy/loss/auc' `against: retrained`"),
        ({"metric": "forget/acuracy", "at_most": 0.1}, "no metric is called 'forget/acuracy'. Close: forget/accuracy"),
        ({"metric": "forgot/accuracy", "at_most": 0.1}, "no metric is called 'forgot/accuracy'"),
        ({"metric": "privacy/loss/aucc", "at_most": 0.1}, "no metric is called 'privacy/loss/aucc'"),
        ({"metric": "quantise/worst/remaining", "at_most": 0.1}, "no metric is called 'quantise/worst/remaining'"),
        ({"metric": "*/worst/left", "at_most": 0.1}, "no metric is called '*/worst/left'"),
        ({"metric": "forget/*", "at_most": 0.1}, "no metric is called 'forget/*'"),
        ({"metric": "*/worst/remaining", "at_most": 0.1, "optional": True}, "names no audit, so none is left out"),
        ({**AGAINST, "within": 0.1, "optional": "yes"}, "optional='yes'; give true or false"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(about, message, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(make_report(KNOWN)))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"first": about}))
    assert main(["gates", str(tmp_path), "--thresholds", str(tmp_path / "own.yaml")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "'first'" in said
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "own.yaml"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No gates"),
        ("a: [", "no valid YAML"),
        ("a: {metric: m, at_most: 1}\na: {metric: n, at_most: 1}", "'a' is written twice"),
        ("- a", "No gates"),
        (None, "No thresholds at"),
    ],
)
def test_files_that_are_no_thresholds(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_gates(path)
    assert str(path) in str(error.value)


def test_what_is_shipped_can_be_asked_of_any_report():
    files = sorted(FOLDER.glob("gates_*.yaml"))
    assert [path.stem for path in files] == ["gates_classifier", "gates_language"]
    counts = []
    for path in files:
        result = judge(make_report({}), load_gates(path))
        assert {one["status"] for one in result["models"][0]["outcomes"]} == {"missing"}
        counts.append(len(result["gates"]))
    assert counts[0] == 8
    assert default_thresholds(make_report(KNOWN)) == files[0]
    assert default_thresholds(make_report({"forget/exact_match": metric(0.1)})) == files[1]


# Audits of robustness


def attacked(report, **kinds):
    """The report with audits of its unlearned model: kind to metrics."""
    report["models"][-1]["audits"] = {
        kind: {"settings": {}, "metrics": metrics, "shown": []} for kind, metrics in kinds.items()
    }
    return report


def unresolved(reason):
    return metric(None, details={"status": "unresolved", "reason": reason})


def test_a_gate_on_every_audit_of_robustness_says_what_the_worst_says():
    about = {"metric": "*/probability/remaining", "at_most": 0.2}
    quantized = {"nf4/probability/remaining": metric(0.02, -0.02, 0.06), "nf4/probability/after": metric(0.9, 0.8, 1)}
    relearned = {"probability/remaining": metric(0.9, 0.8, 1.0), "worst/remaining": metric(0.9, 0.8, 1.0)}
    found = outcome(about, attacked(make_report({}), quantize=quantized, relearn=relearned))
    assert (found["status"], found["metric"]) == ("failed", "relearn/probability/remaining")
    found = outcome(about, attacked(make_report({}), quantize=quantized))
    assert (found["status"], found["metric"]) == ("passed", "quantize/nf4/probability/remaining")
    quantized["int8/probability/remaining"] = unresolved("3 groups of rows; an interval requires 4")
    found = outcome(about, attacked(make_report({}), quantize=quantized))
    assert (found["status"], found["why"]) == ("unresolved", "3 groups of rows; an interval requires 4")
    assert outcome(about, make_report({}))["status"] == "missing"


def test_an_optional_gate_decides_only_where_its_audit_was_made():
    gates = read_gates({
        "quantize": {"metric": "quantize/nf4/probability/remaining", "at_most": 0.1, "optional": True},
        "answers": {"metric": "forget/accuracy", "at_most": 0.5},
    })  # fmt: skip
    for audits, status in (
        ({}, "passed"),
        ({"quantize": {"nf4/probability/remaining": metric(0.0, -0.05, 0.05)}}, "passed"),
        ({"quantize": {"nf4/probability/remaining": metric(0.5, 0.4, 0.6)}}, "failed"),
        ({"quantize": {"nf4/probability/remaining": unresolved("no original model to compare with")}}, "unresolved"),
        # Made, but not this one.
        ({"quantize": {"int8/probability/remaining": metric(0.0, -0.05, 0.05)}}, "missing"),
    ):
        report = attacked(make_report({"forget/accuracy": metric(0.1, 0.0, 0.2)}), **audits)
        assert judge(report, gates, kinds=["quantize"])["status"] == status
    alone = judge(make_report({}), gates[:1], kinds=["quantize"])
    assert alone["status"] == "missing"


def test_what_is_shipped_names_audits_that_there_are():
    from hf_unlearn.audit.registry import AUDITS

    for path in FOLDER.glob("gates_*.yaml"):
        judge(make_report({}), load_gates(path), kinds=AUDITS)


def test_gates_are_told_in_words():
    content = {
        "a": {"metric": "forget/accuracy", "against": "retrained", "within": 0.05},
        "b": {"metric": "test/accuracy", "against": "target", "at_least": -0.02},
        "c": {"metric": "test/dominant_answer", "at_most": 0.5},
    }
    assert [asked(gate.to_dict()) for gate in read_gates(content)] == [
        "forget/accuracy less retrained's: -0.05 to 0.05",
        "test/accuracy less target's ≥ -0.02",
        "test/dominant_answer ≤ 0.5",
    ]


# The command


@pytest.fixture
def run(tmp_path):
    """Writes a run's folder and holds it against gates on two metrics; returns the exit status."""

    def run(first, second, *words, folder=None):
        metrics = {"forget/accuracy": first, "test/accuracy": second}
        spec = {
            "forgot": {"metric": "forget/accuracy", "at_most": 0.3},
            "kept": {"metric": "test/accuracy", "at_least": 0.5},
        }
        (tmp_path / "report.json").write_text(json.dumps(make_report(metrics)))
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec))
        try:
            return main(["gates", str(folder or tmp_path), "--thresholds", str(tmp_path / "own.yaml"), *words])
        except SystemExit as end:
            return end.code

    return run


GOOD, BAD, WIDE = metric(0.1, 0.0, 0.2), metric(0.6, 0.5, 0.7), metric(0.3, 0.1, 0.5)
KEPT = metric(0.8, 0.7, 0.9)


@pytest.mark.parametrize(
    ("first", "second", "status", "word"),
    [
        (GOOD, KEPT, 0, "passed"),
        (BAD, KEPT, 1, "failed"),
        (WIDE, KEPT, 3, "unresolved"),
        (metric(None), KEPT, 3, "missing"),
        (WIDE, metric(0.3, 0.2, 0.4), 1, "failed"),
    ],
)
def test_the_exit_status_tells_a_pipeline(run, tmp_path, capsys, first, second, status, word):
    assert run(first, second) == status
    kept = json.loads((tmp_path / "gates.json").read_text())
    assert kept["status"] == kept["models"][0]["status"] == word
    assert kept["report_created"] == "2026-01-01T00:00:00+00:00"
    assert kept["gates"]["forgot"] == {"metric": "forget/accuracy", "at_most": 0.3}
    said = (tmp_path / "gates.md").read_text()
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.count(" | ") for line in rows} == {2}
    assert word in rows[0]
    assert word in capsys.readouterr().out


def test_a_report_file_stands_for_its_folder(run, tmp_path):
    assert run(GOOD, KEPT, folder=tmp_path / "report.json") == 0
    assert (tmp_path / "gates.json").is_file()
    assert run(GOOD, KEPT, folder=tmp_path / "nowhere") == 2


@pytest.mark.parametrize("place", ["privacy.json", "privacy/privacy.json", "elsewhere/privacy.json"])
def test_attacks_are_read_from_where_they_are_put(run, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(make_privacy({"loss/auc": metric(0.5, 0.4, 0.6)})))
    run(GOOD, KEPT)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"g": {"metric": "privacy/loss/auc", "at_most": 0.7}}))
    words = ["gates", str(tmp_path), "--thresholds", str(tmp_path / "own.yaml")]
    if place.startswith("elsewhere"):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 3
        words += ["--privacy", str(path.parent)]
    assert main(words) == 0
    read = json.loads((tmp_path / "gates.json").read_text())["privacy"]
    assert read in (str(path), str(path.parent))


def test_a_bound_may_have_an_exponent(tmp_path):
    (tmp_path / "own.yaml").write_text("a: {metric: privacy/loss/auc, at_most: 5e-1}")
    (gate,) = load_gates(tmp_path / "own.yaml")
    assert gate.high == 0.5


def test_a_damaged_privacy_report_is_a_mistake_and_not_a_failed_gate(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(make_report(KNOWN)))
    (tmp_path / "privacy").mkdir()
    (tmp_path / "privacy" / "privacy.json").write_text("{")
    assert main(["gates", str(tmp_path)]) == 2
    assert "privacy.json is no JSON" in capsys.readouterr().err


def test_items_of_the_runs_audits_make_differences_narrow(tmp_path):
    """Two models that are right on the same half of the rows."""
    items = [1.0, 0.0] * 50
    results = {kind: mean_result("accuracy", items, "lower") for kind in ("retrained", "unlearned")}
    saved = {name: json.loads(json.dumps(result.to_dict())) for name, result in results.items()}
    report = make_report({"forget/accuracy": saved["unlearned"]}, retrained={"forget/accuracy": saved["retrained"]})
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"g": {**AGAINST, "within": 0.05}}))

    def method(*fingerprints, values=items):
        for kind, fingerprint in zip(results, fingerprints, strict=True):
            settings = {"suite": "vqa", "sets": {"forget": {"fingerprint": fingerprint}}}
            found = {"forget/accuracy": mean_result("accuracy", values, "lower")}
            Audit(found, [], {}, settings).save(tmp_path / "audit" / f"{kind}.json")
        try:
            status = main(["gates", str(tmp_path), "--thresholds", str(tmp_path / "own.yaml")])
        except SystemExit as end:
            status = end.code
        (one,) = json.loads((tmp_path / "gates.json").read_text())["models"][0]["outcomes"]
        return status, one["method"]

    assert method("rows", "rows") == (0, "paired")
    assert method("rows", "other rows") == (3, "both intervals")
    assert method("rows", "rows", values=[1.0] * 100) == (3, "both intervals"), "not what the report says"
