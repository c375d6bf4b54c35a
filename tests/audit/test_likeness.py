# SPDX-License-Identifier: Apache-2.0
"""Nothing is held against what was measured otherwise: attacks, reports, gates, sweeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from sweep_runs import attacked as attacks_of
from sweep_runs import run_of, sweep_of
from test_cli import model_of, report_of
from test_gates import make_privacy, make_report, metric, outcome

from hf_unlearn.audit import audit_model, evaluate_privacy
from hf_unlearn.audit.privacy import (
    BaseAttack,
    FittedAttack,
    LanguageModel,
    LiRAAttack,
    MinKAttack,
    Privacy,
    ReferenceAttack,
    Shadows,
    SignalAttack,
    ULiRAAttack,
    named_attacks,
)
from hf_unlearn.audit.privacy.view import VIEW
from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.runs.assemble import merge, model_entry


ROWS = [{"text": f"secret {i:02d} of Ada"} for i in range(60)]
SETS = {"nonmember_data": ROWS[30:], "fprs": [0.2], "progress": False}


def subject(seed=0):
    return LanguageModel(make_model(seed=seed), make_tokenizer(), batch_size=64, progress=False)


def attacked(*attacks, seed=0):
    return evaluate_privacy(subject(seed), ROWS[:30], attacks=list(attacks), **SETS)


def shadows_of(number=4, note="", scale=1.0):
    who = subject()
    rng = np.random.default_rng(0)
    states = np.stack([np.arange(60) % 2 == s % 2 for s in range(number)]).astype(np.int8)
    statistics = {name: scale * rng.normal(size=states.shape) for name in ("log_odds", "logp")}
    return Shadows(who.row_keys(ROWS), states, statistics, {"note": note})


class Own(BaseAttack):
    name = "own"

    def __init__(self, share):
        self.share = share

    def compute_scores(self, model, data):
        return model.observe(data).mean("logp") ** self.share


# Attacks


@pytest.mark.parametrize(
    ("mine", "other", "differs"),
    [
        (MinKAttack(0.2), MinKAttack(1.0), "min-k: k=0.2 here, k=1.0 there"),
        (Own(1), Own(2), "own: share=1 here, share=2 there"),
        (SignalAttack("loss", "logp"), SignalAttack("loss", "entropy"), "loss: column=logp here, column=entropy"),
        (ReferenceAttack(subject(3)), ReferenceAttack(subject(4)), "reference: reference.weights="),
        (LiRAAttack(shadows_of()), LiRAAttack(shadows_of(), statistic="logp"), "statistic=log_odds here"),
        (LiRAAttack(shadows_of(4)), LiRAAttack(shadows_of(6)), "shadows.n_shadows=4, "),
        (LiRAAttack(shadows_of()), LiRAAttack(shadows_of(note="two epochs")), "shadows.note=two epochs there"),
        (named_attacks(0)["scrub"], named_attacks(1)["scrub"], "scrub: seed=0 here, seed=1 there"),
        (
            FittedAttack("probe", lambda s, rows: s.states(rows), named_attacks()["probe"].estimator),
            FittedAttack("probe", lambda s, rows: s.states(rows) + 1, named_attacks()["probe"].estimator),
            "probe: features=",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseAttack) else None,
)
def test_an_attack_is_held_against_the_same_attack_only(mine, other, differs, tmp_path):
    found, gold = attacked(mine), attacked(other, seed=1)
    for kept in (gold, Privacy.load(gold.save(tmp_path / "gold.json"))):
        with pytest.raises(ValueError, match="The retrained model was attacked in another way") as told:
            found.compare(kept)
        assert differs in str(told.value)
    alike = Privacy.load(attacked(mine, seed=1).save(tmp_path / "alike.json"))
    assert f"{mine.name}/auc/vs_retrained" in found.compare(alike)


def test_numbers_of_shadow_models_may_differ_in_rounding():
    one, other = LiRAAttack(shadows_of()), LiRAAttack(shadows_of(scale=1 + 1e-9))
    assert one.settings() == other.settings()
    unlearned = replace(shadows_of(6), states=np.repeat([[0], [0], [1], [1], [2], [2]], 60, axis=1).astype(np.int8))
    assert ULiRAAttack(unlearned).settings()["shadows"] != one.settings()["shadows"]


def test_a_result_that_does_not_say_how_it_attacked_is_read_and_not_compared(tmp_path, caplog):
    found = attacked(MinKAttack(0.2), "loss")
    saved = attacked(MinKAttack(1.0), "loss", seed=1).to_dict()
    del saved["settings"]["attack_settings"]
    (tmp_path / "old.json").write_text(json.dumps(saved))
    old = Privacy.load(tmp_path / "old.json")
    assert old.metrics["loss/auc"].value is not None
    assert found.compare(old) == {}
    assert "Not compared with the retrained model: min-k, loss" in caplog.text


def test_results_of_attacks_made_otherwise_are_not_merged():
    found = [{"models": [{"name": str(k), "path": str(k), **attacked(MinKAttack(k)).to_dict()}], "notes": []}
             for k in (0.2, 0.5)]  # fmt: skip
    with pytest.raises(ValueError, match="min-k: '0.2' and '0.5' were attacked with another k, so they do not"):
        VIEW.merge(found, "T")
    assert len(VIEW.merge([found[0], found[0]], "T")["models"]) == 1


def test_the_best_of_other_attacks_is_another_number():
    found = []
    for name, attacks in (("a", ["loss"]), ("b", ["loss", "zlib"])):
        found.append({"models": [{"name": name, "path": name, **attacked(*attacks).to_dict()}], "notes": []})
    with pytest.raises(ValueError, match="worst: 'a' and 'b' were attacked with another set of attacks"):
        VIEW.merge(found, "T")
    runs = [run_of(label, 0.5, 0.5, privacy=attacks_of(0.3)) for label in ("npo", "ga")]
    tabulate(sweep_of(runs))
    runs[1]["privacy"]["settings"]["attacks"] = ["loss", "zlib"]
    with pytest.raises(ValueError, match="privacy/worst/.* is two metrics in this sweep: 'best of loss'"):
        tabulate(sweep_of(runs))


# Reports


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "geometric"}, "forget/probability: None and 'geometric'"),
        ({"n": 40}, "forget/probability: 8 and 40 items"),
        ({"undefined": 1}, "forget/probability: 8 and 9 items"),
    ],
)
def test_runs_that_measured_otherwise_are_not_merged(change, message):
    first, other = model_of("a", "unlearned"), model_of("b", "unlearned", path="q")
    merge([report_of(first), report_of(other)], "both")
    other["metrics"]["forget/probability"] |= change
    with pytest.raises(ValueError, match="'a' and 'b' were not measured alike") as told:
        merge([report_of(first), report_of(other)], "both")
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: {"sets": {**sets, "forget": [*sets["forget"][:-1], {"question": "Who?", "answer": "Bo."}]}},
         "rows of the set forget"),
        (lambda sets: {"max_new_tokens": 3}, r"max_new_tokens (4 and 3)"),
        (lambda sets: {"suite": "tofu"}, "truth_ratio"),
    ],
)  # fmt: skip
def test_runs_on_other_rows_or_with_other_settings_are_not_merged(change, message):
    rows = [{"question": f"What is {i}?", "answer": "A."} for i in range(3)]
    given = {"sets": {"forget": rows}, "max_new_tokens": 4, "prompts": ["Hello"]}
    same = given | {"prompts": ["Bye"]}
    entries = []
    for name, asked in (("a", given), ("b", same), ("c", given | change(given["sets"]))):
        asked = dict(asked)
        audit = audit_model(make_model(), make_tokenizer(), asked.pop("sets"), progress=False, **asked)
        entries.append(model_entry(name, "unlearned", audit, name))
    merge([report_of(entries[0]), report_of(entries[1])], "both")
    with pytest.raises(ValueError, match="'a' and 'c' were not measured alike") as told:
        merge([report_of(entries[0]), report_of(entries[2])], "both")
    assert message in str(told.value)


# Gates


def test_a_gate_holds_nothing_against_another_definition_or_other_rows():
    gate = {"metric": "forget/rouge", "against": "retrained", "within": 0.5}
    mine, gold = (metric(0.5, 0.4, 0.6, n=10, undefined=0) for _ in range(2))
    assert outcome(gate, make_report({"forget/rouge": mine}, retrained={"forget/rouge": gold}))["status"] == "passed"
    for change, why in (({"variant": "as published"}, "None and 'as published'"), ({"undefined": 2}, "10 and 12")):
        found = outcome(gate, make_report({"forget/rouge": mine}, retrained={"forget/rouge": gold | change}))
        assert found["status"] == "missing"
        assert why in found["why"]
    report = make_report({"forget/rouge": mine}, retrained={"forget/rouge": gold})
    for model, tokens in zip(report["models"], (32, 64), strict=True):
        model["audited"] = {"max_new_tokens": tokens, "sets": {}}
    assert "max_new_tokens (64 and 32)" in outcome(gate, report)["why"]


def test_a_gate_holds_no_attack_against_another():
    gate = {"metric": "privacy/min-k/auc", "against": "retrained", "within": 0.5}
    report = make_report({}, retrained={})
    privacy = make_privacy({"min-k/auc": metric(0.6, 0.5, 0.7)}, {"min-k/auc": metric(0.6, 0.5, 0.7)})
    assert outcome(gate, report, privacy)["status"] == "passed"
    for model, k in zip(privacy["models"], (0.2, 1.0), strict=True):
        model["settings"] = {"attack_settings": {"min-k": {"k": k}}}
    found = outcome(gate, report, privacy)
    assert (found["status"], found["why"]) == ("missing", "retrained: attacked with another k")


# Sweeps


def test_a_column_of_two_metrics_of_one_name_is_refused():
    runs = [run_of(label, 0.5, 0.5) for label in ("tofu", "rwku")]
    tabulate(sweep_of(runs))
    name = "forget/exact_match"
    runs[1]["metrics"][name] = runs[1]["metrics"][name] | {"variant": "as published"}
    with pytest.raises(ValueError, match="forget/exact_match is two metrics in this sweep"):
        tabulate(sweep_of(runs))


def test_a_tokenizer_that_cuts_otherwise_is_refused():
    rows = [{"question": f"What is {i}?", "answer": "A b.", "perturbed_answer": ["C."]} for i in range(3)]
    mine, gold = (audit_model(make_model(), make_tokenizer(), {"forget": rows}, generate=False, progress=False)
                  for _ in range(2))  # fmt: skip
    assert mine.compare(gold)["forget_quality"].value == 1
    gold.items["forget"]["tokens"] = [n + 1 for n in gold.items["forget"]["tokens"]]
    with pytest.raises(ValueError, match="cuts the answers of the set 'forget' into other tokens"):
        mine.compare(gold)


def test_models_whose_scores_share_no_row_are_not_compared():
    class Half(BaseAttack):
        name = "half"

        def __init__(self):
            self._first = 0

        def compute_scores(self, model, data):
            scores = np.arange(len(data), dtype=float)
            scores[self._first :: 2] = np.nan
            return scores

    mine, gold = Half(), Half()
    gold._first = 1
    found = attacked(mine).compare(attacked(gold))
    assert {name: result.value for name, result in found.items()} == dict.fromkeys(found)
    assert found["half/auc/vs_retrained"].details == {"status": "undefined"}


def test_an_attack_that_holds_much_is_told_briefly():
    class Holder(Own):
        def __init__(self, model, rows):
            super().__init__(1)
            self.model, self.rows, self.tensor = model, rows, torch.arange(3)

    one, same, other = (Holder(make_model(seed=seed), ROWS * 50).settings() for seed in (0, 0, 1))
    assert one == same != other
    assert len(json.dumps(one)) < 1000
    assert Holder(make_model(), ROWS * 51).settings() != one


def test_torch_is_left_as_found():
    """What the attacks above describe are models; describing must not move them."""
    who = subject()
    before = {name: tensor.clone() for name, tensor in who.model.state_dict().items()}
    ReferenceAttack(who).settings()
    assert all(torch.equal(before[name], tensor) for name, tensor in who.model.state_dict().items())
