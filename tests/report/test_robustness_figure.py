# SPDX-License-Identifier: Apache-2.0
"""What is left along an attack: which lines are drawn, and where their figures are found."""

import pytest
from test_report import full_report

from hf_unlearn.audit.robustness.view import RobustnessView
from hf_unlearn.report import write_report
from hf_unlearn.report.robustness import models_in, panels


def point(setting, unlearned, original=1.0, never_knew=0.0, step=None):
    share = (unlearned - never_knew) / (original - never_knew)
    return {"setting": setting, "step": step, "unlearned": unlearned, "original": original, "never_knew": never_knew,
            "remaining": share}  # fmt: skip


def metric(value, curve=(), interval=None, **details):
    return {"value": value, "n": 8, "undefined": 0, "interval": interval, "interval_method": None,
            "direction": "lower", "variant": None, "details": {"curve": [*curve], **details}}  # fmt: skip


STEPS = [
    point("weak", 0.1, 0.9, 0.1, 0), point("weak", 0.3, 0.9, 0.1, 4),
    point("strong", 0.2, 0.9, 0.1, 0), point("strong", 0.8, 0.95, 0.15, 4),
]  # fmt: skip
METRICS = {
    "probability/remaining": metric(0.8, STEPS, [0.7, 0.9], setting="strong, step 4"),
    # The same in another unit.
    "exact_match/remaining": metric(0.7, STEPS),
    "lens/readable/remaining": metric(0.5, [point("layer 0", 0.1), point("layer 10", 0.5)], setting="layer 10"),
    # One setting is no line.
    "nf4/probability/remaining": metric(0.1, [point("nf4", 0.1)]),
    "sampled/leak@8/remaining": metric(None, estimate=0.4),
    "sampled/leak@1/remaining": metric(0.2, interval=[0.1, 0.3]),
    "worst/remaining": metric(0.8, which="probability/remaining"),
}


def models(name="NPO", metrics=METRICS):
    return [
        {"name": name, "kind": "unlearned", "audits": {"relearn": {"settings": {"bound": 0.3}, "metrics": metrics}}}
    ]


def test_a_line_has_each_models_strongest_setting_at_every_step():
    found = {panel.title: panel for panel in panels(models(), "relearn")}
    assert [*found] == ["probability", "lens/readable", "sampled/leak@k"]
    line = found["probability"].lines["NPO"]
    # Maxima of each model by itself, and not of the shares.
    assert line.points == [(0.0, pytest.approx(0.1 / 0.8)), (4.0, pytest.approx((0.8 - 0.15) / (0.95 - 0.15)))]
    assert line.intervals == {4.0: [0.7, 0.9]}
    assert (found["probability"].xlabel, found["probability"].bound) == ("steps", 0.3)
    assert found["lens/readable"].lines["NPO"].points == [(0.0, 0.1), (10.0, 0.5)]
    assert found["lens/readable"].xlabel == "layer"
    leak = found["sampled/leak@k"].lines["NPO"]
    assert leak.points == [(1.0, 0.2), (8.0, 0.4)]
    assert leak.intervals == {1.0: [0.1, 0.3]}


def test_models_that_were_not_audited_so_are_not_drawn():
    shown = [*models(), {"name": "GA", "kind": "unlearned"}]
    assert models_in({"models": shown}, "relearn") == ["NPO"]
    assert panels(shown, "quantize") == []
    nothing = {"worst/remaining": METRICS["worst/remaining"]}
    assert panels(models(metrics=nothing), "relearn") == []


@pytest.mark.drawn
def test_figures_stand_beside_the_file_and_in_the_report(tmp_path):
    view = RobustnessView("relearn", "Relearned", "Some steps of training.")
    entry = {"name": "NPO", "kind": "audited", "path": "m", "settings": {"bound": 0.3}, "metrics": METRICS}
    found = {"schema_version": 1, "title": "Relearned: NPO", "command": None, "models": [entry], "notes": []}
    view.write(found, tmp_path / "relearn")
    assert (tmp_path / "relearn/plots/robustness_relearn.png").stat().st_size > 10_000
    assert "![Relearned](plots/robustness_relearn.png)" in (tmp_path / "relearn/relearn.md").read_text()

    report = full_report()
    model = next(one for one in report["models"] if one["name"] == "NPO")
    model["audits"] = models()[0]["audits"] | {}
    model["audits"]["relearn"]["shown"] = ["worst/remaining"]
    report["sections"] = [view.section(report["models"])]
    paths = write_report(report, tmp_path / "report")
    assert paths["plots/robustness_relearn.png"].stat().st_size > 10_000
    assert "(plots/robustness_relearn.png)" in paths["report.md"].read_text()
    page = paths["report.html"].read_text()
    assert page.count('aria-label="Line chart: what is left') == 3
    # Without numbers the figure of before goes.
    del model["audits"]
    report["sections"] = []
    write_report(report, tmp_path / "report")
    # Nor is anything else to be drawn for the audit's own file.
    view.write({**found, "models": [{**entry, "metrics": {}}]}, tmp_path / "relearn")
    assert not (tmp_path / "relearn/plots/robustness_relearn.png").exists()
    assert "plots/" not in (tmp_path / "relearn/relearn.md").read_text()
