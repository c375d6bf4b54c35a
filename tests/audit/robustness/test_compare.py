# SPDX-License-Identifier: Apache-2.0
"""Models under one attack, compared: each by its own strongest setting, and what is said where they cannot be."""

import numpy as np
import pytest

from hf_unlearn.audit.robustness.keys import key_tokens
from hf_unlearn.audit.robustness.measured import Measured, RowScores
from hf_unlearn.audit.robustness.result import Robustness


N = 24
GROUPS = [f"p{i // 4}" for i in range(N)]
STEPS = (1, 2, 4)


def scores(values, rows=None, **more) -> RowScores:
    """Rows of three tokens of one probability each."""
    rows = list(range(len(values))) if rows is None else rows
    logps = [[float(np.log(value))] * 3 for value in values]
    return RowScores(rows, logps, [[value > 0.5] * 3 for value in values], more)


def result(before: float, curves: dict[str, list[float]], seed: int = 0, holdout=None, rows=None, **settings):
    """A model that shows `before`, and under each setting the means of its curve, row by row a little apart."""
    rng = np.random.default_rng(seed)
    rows = list(range(N)) if rows is None else rows

    def around(mean, n=N):
        return np.clip(mean + rng.normal(0, 0.01, n), 1e-4, 1).tolist()

    def measured(setting, step, mean):
        other = None if holdout is None else scores(around(holdout, 12))
        return Measured(setting, scores(around(mean, len(rows)), rows), step=step, holdout=other)

    found = [
        measured(setting, step, mean)
        for setting, curve in curves.items()
        for step, mean in zip(STEPS, curve, strict=True)
    ]
    about = {
        "comparator": "auto",
        "scores": ["probability", "exact_match", "key_probability"],
        "bound": 0.2,
        "resolution": 0.15,
        "groups": GROUPS,
        "holdout_groups": [f"h{i // 3}" for i in range(12)],
        **settings,
    }
    start = Measured("before", scores(around(before)))
    start.holdout = None if holdout is None else scores(around(holdout, 12))
    return Robustness({}, about, start, found)


def original(**more):
    return result(0.95, {"weak": [0.95, 0.95, 0.95], "strong": [0.95, 0.94, 0.6]}, seed=1, **more)


def retrained(**more):
    return result(0.05, {"weak": [0.05, 0.06, 0.07], "strong": [0.08, 0.1, 0.3]}, seed=2, **more)


def unlearned(**more):
    return result(0.05, {"weak": [0.05, 0.05, 0.06], "strong": [0.2, 0.5, 0.9]}, **more)


def test_the_strongest_setting_that_does_not_damage_is_taken():
    found = unlearned().compare(retrained(), original())["probability/remaining"]
    # Step 4 at the strong setting would give .9, and harms the original model.
    assert found.details["refused"] == ["strong, step 4"]
    assert found.details["setting"] == "strong, step 2"
    assert found.details["settings"]["retrained"] == "strong, step 2"
    assert found.value == pytest.approx((0.5 - 0.1) / (0.95 - 0.1), abs=0.02)
    assert found.details["verdict"] == "suppressed"
    assert found.details["recovery"] == pytest.approx(found.value - max(0, found.details["remaining_before"]))
    assert [point["step"] for point in found.details["curve"]] == [1, 2, 4, 1, 2]


def test_a_model_that_never_knew_is_not_suppressed_whatever_the_attack_teaches():
    curves = {"weak": [0.3, 0.35, 0.4], "strong": [0.4, 0.5, 0.6]}
    taught = {seed: result(0.05, curves, seed=seed) for seed in (3, 4)}
    found = taught[3].compare(taught[4], original())["probability/remaining"]
    assert found.interval[0] <= 0 <= found.interval[1]
    assert found.details["verdict"] == "not recovered within budget"
    # The published ratio says otherwise.
    after = found.details["after"]
    assert (after - 0.05) / (0.95 - 0.05) > 0.3


def test_the_original_as_the_unlearned_model_is_suppressed_with_no_recovery():
    found = original().compare(retrained(), original())["probability/remaining"]
    assert found.value == pytest.approx(1)
    assert found.details["remaining_before"] == pytest.approx(1)
    assert found.details["recovery"] == pytest.approx(0, abs=1e-9)
    assert found.details["verdict"] == "suppressed"


# Acceptance 10: comparators


def test_rows_that_no_model_saw_stand_in_for_the_retrained_model():
    with_retrained = unlearned().compare(retrained(), original())["probability/remaining"]
    found = unlearned(holdout=0.1).compare(None, original(holdout=0.1))["probability/remaining"]
    assert found.details["comparator"] == "holdout"
    assert found.value == pytest.approx(with_retrained.value, abs=0.05)
    assert found.details["remaining_before"] == pytest.approx(-0.05, abs=0.02)
    assert found.interval[0] < found.value < found.interval[1]


def test_without_a_comparator_or_an_original_nothing_is_divided():
    for gold, start, words, settings in (
        (None, original(), "never knew", {}),
        (retrained(), None, "no original", {}),
        (retrained(comparator="none"), original(comparator="none"), "never knew", {"comparator": "none"}),
        (None, original(comparator="retrained"), "never knew", {"comparator": "retrained"}),
    ):
        mine = unlearned(**settings)
        found = mine.compare(gold, start)
        assert all(one.value is None for one in found.values())
        assert words in found["worst/remaining"].details["reason"]
        assert found["probability/remaining"].details["after"] == pytest.approx(0.9, abs=0.02)
        assert mine.metrics["probability/after"].value == pytest.approx(0.9, abs=0.02)


def test_a_race_counts_the_steps_that_are_saved():
    curves = {"u": [0.1, 0.6, 0.6], "r": [0.05, 0.1, 0.65], "o": [0.95] * 3}

    def race(data: str, r=curves["r"], u=curves["u"]) -> dict:
        models = [result(0.05, {"rate": u}, seed=1, data=data), result(0.05, {"rate": r}, seed=2, data=data)]
        for one in models[0].measured[2:]:
            # No more than a step before, in every row.
            one.tested = scores([0.45] * N)
        return (
            models[0]
            .compare(models[1], result(0.95, {"rate": curves["o"]}, seed=3, data=data))["probability/remaining"]
            .details
        )

    found = race("teach")
    assert found["setting"] == "rate, step 2"
    # The model that never knew is there two steps later.
    assert found["saved_steps"] == 2
    assert found["steps_to_half"] == 2
    assert race("teach", r=[0.7, 0.7, 0.7])["saved_steps"] == -1
    assert race("teach", r=[0.05, 0.1, 0.2])["saved_steps"] is None
    # Where other rows are tested, nobody is taught them.
    assert "saved_steps" not in race("split")


def test_an_attack_that_always_damages_says_nothing():
    broken = result(0.95, {"weak": [0.5] * 3, "strong": [0.4] * 3}, seed=1)
    found = unlearned().compare(retrained(), broken)
    assert "damages the original" in found["probability/remaining"].details["reason"]
    assert found["worst/remaining"].value is None


@pytest.mark.parametrize("which", range(3))
def test_an_attack_that_did_not_take_place_says_nothing(which):
    models = [unlearned(), retrained(), original()]
    for one in models[which].measured:
        one.more["failed"] = "no weight changed"
    mine, gold, start = models
    found = mine.compare(gold, start)["probability/remaining"]
    assert found.value is None
    assert "had no effect: no weight changed" in found.details["reason"]


def test_a_setting_that_did_not_take_place_is_left_out():
    mine = unlearned()
    for one in mine.measured[3:]:
        one.more["failed"] = "diverged"
    found = mine.compare(retrained(), original())["probability/remaining"]
    assert found.details["setting"].startswith("weak")
    assert set(found.details["failed"]) == {"strong, step 1", "strong, step 2"}


# What is held against each other


def test_results_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="The retrained model's result differs in forget_rows"):
        unlearned(forget_rows="a").compare(retrained(forget_rows="b"), original(forget_rows="a"))
    with pytest.raises(ValueError, match="Two models were not attacked alike: weak, step 1"):
        unlearned().compare(retrained(rows=list(range(4, N))), original())


def test_results_are_json_both_ways(tmp_path):
    results = [unlearned(holdout=0.1), retrained(holdout=0.1), original(holdout=0.1)]
    again = [Robustness.load(one.save(tmp_path / f"{i}.json")) for i, one in enumerate(results)]
    assert again == results
    mine, gold, start = results
    found = mine.compare(gold, start)
    assert again[0].compare(again[1], again[2]) == found
    assert Robustness.load(mine.save(tmp_path / "all.json")).metrics == mine.metrics


def joined(before: float, first: float, second: float, seed: int, holdout: tuple | None = None):
    """A model under two ways to ask that take part in the maximum; only the first asks rows that no model saw."""
    found = result(before, {"first": [first] * 3, "second": [second] * 3}, seed=seed, holdout=0.05)
    found.measured = [one for one in found.measured if one.step == 1]
    for one in found.measured:
        one.family, one.step, one.more = one.setting, None, {"joins": True}
        one.holdout = scores([0.05] * 12) if one.family == "first" else None
    return Robustness({}, found.settings, found.before, found.measured)


def test_a_maximum_is_of_the_same_attacks_in_the_rows_that_stand_for_a_model_that_never_knew():
    # The second way to ask brings 0.6 out of any row, known or not: of rows that no model saw it was not asked.
    found = joined(0.05, 0.05, 0.6, seed=0).compare(None, joined(0.95, 0.95, 0.95, seed=1))
    assert found["max/probability/remaining"].details["among"] == ["first"]
    assert found["max/probability/remaining"].value == pytest.approx(0, abs=0.05)
    assert found["worst/remaining"].details["verdict"] != "suppressed"


def test_a_gate_on_the_worst_is_not_passed_while_another_score_cannot_be_told():
    from hf_unlearn.report.gates.evaluate import judge
    from hf_unlearn.report.gates.spec import read_gates

    def status(wide: float) -> str:
        models = [result(0.05, {"weak": [mean] * 3}, seed=seed) for seed, mean in ((0, 0.06), (1, 0.05), (2, 0.95))]
        for model, mean in zip(models, (0.15, 0.05, 0.95), strict=True):
            for one in model.measured:
                # By person far apart in the unlearned model alone.
                far = [mean + (wide * (-1) ** (i // 4) if mean == 0.15 else 0.01 * (i % 3)) for i in range(N)]
                one.tested.scores["other"] = far
        found = models[0].compare(models[1], models[2])
        assert (found["other/remaining"].value is None) == (wide > 0.1)
        assert found["worst/remaining"].value is not None
        metrics = {name: metric.to_dict() for name, metric in found.items()}
        model = {
            "name": "u",
            "kind": "unlearned",
            "metrics": {},
            "audits": {"relearn": {"metrics": metrics, "settings": {}}},
        }
        gates = read_gates({"back": {"metric": "relearn/worst/remaining", "at_most": 0.3}})
        return judge({"models": [model]}, gates, kinds=["relearn"])["models"][0]["outcomes"][0]["status"]

    assert status(0.01) == "passed"
    assert status(0.5) == "unresolved"


# Key tokens


def test_key_tokens_are_chosen_by_the_two_models_that_are_not_judged():
    o = RowScores([0, 1], [[-0.1, -0.1, -3.0], [-0.2, -0.2]], [[True, True, False], [True, True]])
    r = RowScores([0, 1], [[-2.0, -0.5, -9.0], [-0.2, -1.2]], [[False, True, False], [True, True]])
    keys = key_tokens(o, r)
    assert keys == [[0, 2], []]
    assert o.values("key_probability", keys) == [pytest.approx(np.exp(-1.55)), None]
    assert o.values("known", keys) == [0.0, None]
    assert o.values("known", [[0, 1], [1]]) == [1.0, 1.0]
    assert o.values("known") == o.values("key_probability") == [None, None]


def test_a_row_that_a_model_leaves_undefined_has_no_key_tokens():
    o = RowScores([0, 1], [[-0.1], [-0.1]], [[True], [True]])
    r = RowScores([0, 1], [[-5.0], []], [[False], []])
    assert key_tokens(o, r) == [[0], []]


def test_a_family_without_rows_that_no_model_saw_has_nothing_to_be_compared_with():
    audited = unlearned(holdout=0.05)
    for one in audited.measured:
        one.holdout = None
    found = audited.compare(None, original(holdout=0.05))["probability/remaining"]
    assert found.value is None
    assert found.details["reason"] == "no model or rows that never knew the answers to compare with"
