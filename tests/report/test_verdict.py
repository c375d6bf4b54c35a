# SPDX-License-Identifier: Apache-2.0
"""The line on a run: which words for which numbers, and that it is the same everywhere."""

import copy
import io
import json
import math

import pytest

from hf_unlearn.report import print_report, write_report
from hf_unlearn.report.findings import forgot_status, kept_status
from hf_unlearn.report.verdict import verdicts


OVER = "Over-forgotten: worse than a model that never knew"


def share(right: int, n: int) -> dict:
    """A share of right answers, with its exact interval."""
    from hf_unlearn.audit.result import proportion_interval

    return number(right / n, proportion_interval(right, n), n=n)


def mean(value: float, n: int = 40) -> dict:
    """A mean over rows that spread as probabilities and ROUGE do there."""
    half = 1.96 * 0.35 * math.sqrt(value * (1 - value) / n)
    return number(value, (max(0.0, value - half), min(1.0, value + half)), n=n)


def number(value, interval=None, direction="lower", n=40, **details) -> dict:
    interval = None if interval is None else list(interval)
    about = {"value": value, "interval": interval, "n": n, "direction": direction}
    return {**about, "variant": None, "undefined": 0, "details": details}


def model(kind: str, name: str | None = None, **more) -> dict:
    return {"name": name or kind, "kind": kind, "path": f"runs/{name or kind}", "method": None, **more}


def report_of(*models: dict) -> dict:
    about = {"schema_version": 1, "title": "t", "created": "2026-11-30", "suite": "s", "settings": {}, "versions": {}}
    return {**about, "models": list(models), "notes": []}


def tofu(kind: str, right: int, probability: float, rouge: float, retain: int, p: float | None, name=None) -> dict:
    """A model as the real one was measured: 40 forget rows, 80 retain rows."""
    metrics = {
        "forget/probability": mean(probability),
        "forget/rouge": mean(rouge),
        "forget/exact_match": share(right, 40),
        "retain/exact_match": {**share(retain, 80), "direction": "higher"},
    }
    if p is not None:
        metrics["forget_quality"] = number(p, direction="higher")
    return model(kind, name, metrics=metrics)


TARGET, RETRAINED = tofu("target", 39, 0.99, 0.998, 76, 0.007), tofu("retrained", 0, 0.11, 0.325, 76, None)
# Methods on a real model and real TOFU, measured by hand.
MEASURED = {
    "NPO-KLR": ((0, 0.129, 0.344, 30, 0.014), "✗ Forgotten like retrained; most of the rest is lost"),
    "GradDiff": (
        (9, 0.562, 0.659, 68, 0.007),
        "? Forgotten in part: up to 51 % is left (answer probability); keeping is unresolved",
    ),
    "RMU, recipe": ((39, 0.99, 0.998, 76, 0.007), "✗ Not forgotten; the rest is kept"),
    "RMU, by hand": ((0, 0.002, 0.076, 74, 7e-5), f"~ {OVER}; the rest is kept"),
    "MU-ALIGN": ((0, 0.129, 0.211, 76, 0.054), f"~ {OVER}; the rest is kept"),
    "NPO-KLR, LoRA": (
        (1, 0.238, 0.299, 8, 0.029),
        "✗ Forgotten in part: up to 15 % is left (answer probability); most of the rest is lost",
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_on_a_real_model_gets_the_right_words(name):
    numbers, line = MEASURED[name]
    (verdict,) = verdicts(report_of(TARGET, RETRAINED, tofu("unlearned", *numbers, name=name)))
    assert verdict.line == line
    (test,) = [finding for finding in verdict.more if finding.metric == "forget quality"]
    if name == "RMU, by hand":
        assert (test.status, test.word) == ("differs", "differs from retrained, n = 40")
    else:
        assert (test.status, test.word) == ("unresolved", "cannot tell at n = 40: the target itself has p = 0.007")


def test_the_retrained_model_itself_is_forgotten_like_retrained():
    again = tofu("unlearned", 1, 0.10, 0.31, 75, 0.4, name="another seed")
    (verdict,) = verdicts(report_of(TARGET, RETRAINED, again))
    assert verdict.line == "✓ Forgotten like retrained; the rest is kept"


def world(kind: str, **values) -> dict:
    """A model of the embedded world as it was measured: 32 forget rows, values with their intervals."""
    metrics = {name.replace("__", "/"): number(v, (low, high), n=32) for name, (v, low, high) in values.items()}
    metrics["forget/truth_ratio"]["direction"] = "closer_to_retrained"
    metrics["retain/exact_match"] = {**share(288, 288), "direction": "higher"}
    return model(kind, metrics=metrics)


def measured_world(unlearned: dict) -> dict:
    target = world(
        "target",
        forget__exact_match=(1.0, 0.891, 1.0),
        forget__probability=(0.992, 0.991, 0.993),
        forget__truth_ratio=(0.320, 0.279, 0.362),
        forget__exact_memorization=(1.0, 0.891, 1.0),
        forget__rouge=(1.0, 0.891, 1.0),
    )
    retrained = world(
        "retrained",
        forget__exact_match=(0.0, 0.0, 0.109),
        forget__probability=(0.005, 0.004, 0.006),
        forget__truth_ratio=(0.735, 0.671, 0.796),
        forget__exact_memorization=(0.399, 0.359, 0.434),
        forget__rouge=(0.403, 0.326, 0.482),
    )
    return report_of(target, retrained, world("unlearned", **unlearned))


def test_a_model_retrained_with_another_seed_passes_and_the_one_that_only_answers_like_it_does_not():
    passing = {
        "forget__exact_match": (0.0, 0.0, 0.109),
        # Apart from 0.5 %, and nothing beside the target's 99 %.
        "forget__probability": (0.0035, 0.003, 0.0039),
        "forget__truth_ratio": (0.707, 0.644, 0.768),
        "forget__exact_memorization": (0.395, 0.366, 0.422),
        "forget__rouge": (0.319, 0.259, 0.382),
    }
    (verdict,) = verdicts(measured_world(passing))
    assert (verdict.line, verdict.more) == ("✓ Forgotten like retrained; the rest is kept", verdict.more[:1])
    npo = passing | {
        "forget__truth_ratio": (0.585, 0.509, 0.656),
        "forget__exact_memorization": (0.505, 0.475, 0.534),
        "forget__rouge": (0.528, 0.475, 0.577),
    }
    (verdict,) = verdicts(measured_world(npo))
    assert verdict.line == "~ Forgotten in part: up to 36 % is left (truth ratio); the rest is kept"
    # What disagrees is shown, the farthest first, and what does not is not.
    assert [finding.metric for finding in verdict.more][1:] == ["truth ratio", "exact memorization"]
    assert verdict.more[-1].word == "in part, 18 % is left"


def test_gibberish_where_a_model_that_never_knew_guesses_is_a_trace():
    gibberish = {
        "forget__exact_match": (0.0, 0.0, 0.109),
        "forget__probability": (0.0001, 0.0, 0.0002),
        "forget__truth_ratio": (0.738, 0.677, 0.797),
        "forget__exact_memorization": (0.022, 0.010, 0.038),
        "forget__rouge": (0.036, 0.016, 0.059),
    }
    (verdict,) = verdicts(measured_world(gibberish))
    assert verdict.line == f"~ {OVER}; the rest is kept"


@pytest.mark.parametrize(
    ("mine", "status"),
    [
        ((0.05, 0.0, 0.1), "yes"),
        # Apart from retrained, but no tenth of the way: such a difference does not matter.
        ((0.18, 0.16, 0.2), "yes"),
        ((0.22, 0.16, 0.28), "partly"),
        ((0.9, 0.8, 0.95), "no"),
        # Like retrained as far as it goes, and like half of what was known too.
        ((0.3, 0.1, 0.7), "unresolved"),
        ((0.5, 0.0, 1.0), "unresolved"),
    ],
)
def test_a_metric_of_forgetting(mine, status):
    target, retrained = number(0.9, (0.85, 0.95)), number(0.1, (0.05, 0.15))
    assert forgot_status(number(mine[0], mine[1:]), target, retrained)[0] == status


def test_what_the_retrained_model_is_not_below_cannot_be_forgotten():
    target, retrained = number(0.1, (0.05, 0.15)), number(0.4, (0.3, 0.5))
    assert forgot_status(number(0.4, (0.3, 0.5)), target, retrained) == (
        "unresolved",
        "unresolved: nothing was there to forget",
    )
    models = [
        model(
            kind, metrics={"forget/exact_match": one, "retain/exact_match": {**share(80, 80), "direction": "higher"}}
        )
        for kind, one in (("target", target), ("retrained", retrained), ("unlearned", retrained))
    ]
    (verdict,) = verdicts(report_of(*models))
    assert verdict.line == "? Forgetting is unresolved; the rest is kept"


@pytest.mark.parametrize(
    ("mine", "before", "status"),
    [
        ((0.25, 0.0, 0.3), (0.26, 0.0, 0.31), "unresolved"),
        ((0.6, 0.55, 0.65), (0.6, 0.0, 0.7), "unresolved"),
        ((0.96, 0.95, 0.97), (1.0, 0.99, 1.0), "yes"),
        ((0.9, 0.88, 0.92), (1.0, 0.99, 1.0), "partly"),
        ((0.4, 0.35, 0.45), (1.0, 0.99, 1.0), "no"),
        ((0.9, 0.7, 0.98), (1.0, 0.9, 1.0), "unresolved"),
    ],
)
def test_a_metric_of_keeping(mine, before, status):
    found = (number(one[0], one[1:], "higher") for one in (mine, before))
    assert kept_status(*found)[0] == status


def test_without_an_interval_a_loss_is_told_and_no_loss_is_not():
    before = number(0.6, (0.55, 0.65), "higher")
    assert kept_status(number(0.0, None, "higher"), before) == ("no", "no, most is lost")
    assert kept_status(number(0.6, None, "higher"), before) == ("unresolved", "unresolved: no interval")


def test_utility_that_decides_nothing_has_no_tick_and_names_the_term_that_rules_it():
    report = report_of(*(copy.deepcopy(one) for one in (TARGET, RETRAINED)), tofu("unlearned", 0, 0.1, 0.32, 76, 0.5))
    for one in report["models"]:
        terms = {"retain/rouge": 0.9, "real_authors/rouge": 0.01, "world_facts/rouge": 0.4}
        one["metrics"]["model_utility"] = number(0.03, (0.0, 0.3), "higher", terms=terms)
    (verdict,) = verdicts(report)
    (utility,) = [finding for finding in verdict.more if finding.metric == "model utility"]
    assert utility.sign == "?"
    assert utility.word.endswith("real, authors: ROUGE-L recall is 0.01 and rules the harmonic mean")
    assert verdict.line == "✓ Forgotten like retrained; the rest is kept"
    # Where it does decide, it has a say.
    for one, value in zip(report["models"], (0.6, 0.6, 0.2), strict=True):
        one["metrics"]["model_utility"] = number(value, (value - 0.05, value + 0.05), "higher")
    assert verdicts(report)[0].line == "~ Forgotten like retrained; some of the rest is lost"


def test_without_a_retrained_model_no_tick_is_given():
    *numbers, _ = MEASURED["RMU, by hand"][0]
    (verdict,) = verdicts(report_of(TARGET, tofu("unlearned", *numbers, None)))
    assert verdict.line == (
        "~ Knows less of the forget set (without a retrained model, more cannot be said); the rest is kept"
    )
    (verdict,) = verdicts(report_of(TARGET, tofu("unlearned", *MEASURED["RMU, recipe"][0])))
    assert verdict.line == "✗ Not forgotten; the rest is kept"


def test_holdout_rows_stand_in_for_no_retrained_model_and_the_finding_says_so():
    found = tofu("unlearned", 0, 0.129, 0.344, 76, None)
    found["metrics"]["holdout/exact_match"] = share(0, 40)
    verdict = verdicts(report_of(TARGET, found))[0]
    assert verdict.headline.startswith("Knows less of the forget set (without a retrained model")
    told = "holdout rows are other rows, and stand in for no retrained model"
    assert verdict.forgot.word == f"less than the target; {told}"
    # With one, they need not.
    assert told not in verdicts(report_of(TARGET, RETRAINED, found))[0].forgot.word


def test_without_a_target_retrained_decides():
    (verdict,) = verdicts(report_of(RETRAINED, tofu("unlearned", *MEASURED["RMU, by hand"][0])))
    assert verdict.line == f"~ {OVER}; the rest is kept"
    (verdict,) = verdicts(report_of(RETRAINED, tofu("unlearned", 0, 0.1, 0.32, 76, 0.5)))
    assert verdict.line == "✓ Forgotten like retrained; the rest is kept"


def robust(said: str, value: float | None = 0.05) -> dict:
    reason = {"reason": "3 groups of rows; an interval requires 4"} if said == "unresolved" else {}
    worst = number(value, None if value is None else (value - 0.05, value + 0.05), verdict=said, **reason)
    return {"settings": {}, "metrics": {"worst/remaining": worst}, "shown": ["worst/remaining"]}


@pytest.mark.parametrize(
    ("audits", "line"),
    [
        (
            {"relearn": robust("suppressed", 0.9), "quantize": robust("not recovered within budget")},
            "✗ Forgotten like retrained; the rest is kept; suppressed: comes back by relearn",
        ),
        (
            {"relearn": robust("not recovered within budget"), "quantize": robust("not recovered within budget")},
            "✓ Forgotten like retrained; the rest is kept; not recovered within budget by relearn, quantize",
        ),
        (
            {"quantize": robust("not recovered within budget"), "relearn": robust("unresolved", None)},
            (
                "✓ Forgotten like retrained; the rest is kept; not recovered within budget by quantize; "
                "unresolved whether it comes back by relearn"
            ),
        ),
        ({"perplexity": {"settings": {}, "metrics": {"nll": number(2.0, (1.0, 3.0))}}}, None),
    ],
)
def test_whether_it_came_back_is_in_the_line(audits, line):
    unlearned = tofu("unlearned", 0, 0.1, 0.32, 76, 0.5) | {"audits": audits}
    (verdict,) = verdicts(report_of(TARGET, RETRAINED, unlearned))
    assert verdict.line == (line or "✓ Forgotten like retrained; the rest is kept")


def test_every_rendering_has_the_same_line(tmp_path):
    from rich.console import Console

    numbers, line = MEASURED["RMU, by hand"]
    report = report_of(TARGET, RETRAINED, tofu("unlearned", *numbers, name="RMU"))
    files = write_report(report, tmp_path)
    stream = io.StringIO()
    print_report(json.loads(files["report.json"].read_text(encoding="utf-8")), Console(file=stream, width=200))
    assert line in files["report.md"].read_text(encoding="utf-8")
    assert line in files["report.html"].read_text(encoding="utf-8")
    assert f"{line[:2]}RMU: {line[2:]}." in stream.getvalue()
