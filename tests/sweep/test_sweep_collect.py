# SPDX-License-Identifier: Apache-2.0
"""From runs' folders to `sweep.json`: what was evaluated on the way, rounds, baselines, and what is missing."""

import json
from pathlib import Path

import pytest
from sweep_runs import FORGET, attacked, metric

from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.report.sweep.spread import spread_of
from hf_unlearn.sweep.collect import collect
from hf_unlearn.sweep.expand import Run
from hf_unlearn.sweep.manifest import read_manifest, write_manifest


RETAIN = "retain/exact_match"
SETTINGS = {
    "name": "test",
    "select": {"kind": "last", "bound": None, "forget": None, "utility": None},
    "tuning_seed": None,
    "metrics": None,
    "retrained_seconds": None,
}


@pytest.fixture
def sweep(tmp_path):
    """Lists runs of Align-then-Unlearn in two rounds: steps 1-6, 7-8 (unlearn), 9-11, 12-13 (unlearn)."""

    def sweep(*seeds: int, privacy=None, **more) -> list[Run]:
        runs = []
        for seed in seeds:
            name, folder = f"atu-seed{seed}", tmp_path / "runs" / f"atu-seed{seed}"
            resolved = {
                "seed": seed,
                "model_name_or_path": "m",
                "benchmark": "world",
                "thresholds": [0.9, 0.5],
                **more,
            }
            resolved |= {"first_align_steps": 6, "align_steps": 3, "unlearn_steps": 2, "env": {"TOKEN": "x"}}
            about = (name, name, "atu", "atu.yaml", "align_then_unlearn", {}, ["a"], seed, False, None)
            runs.append(Run(*about, folder, {"output_dir": str(folder)}, resolved, privacy))
        write_manifest(tmp_path, runs, SETTINGS)
        return runs

    return sweep


def finish(run: Run, forget: float = 0.1, target: float = 1.0, logged=(), steps: int = 13) -> None:
    models = [
        {"name": "target", "kind": "target", "path": "m", "metrics": {FORGET: metric(target), RETAIN: metric(1.0)}},
        {
            "name": run.name,
            "kind": "unlearned",
            "path": "p",
            "metrics": {FORGET: metric(forget), RETAIN: metric(0.9)},
            "train": {"seconds": 5.0, "steps": steps},
        },
    ]
    settings = {run.name: {key: value for key, value in run.resolved.items() if key != "env"}}
    report = {"schema_version": 1, "title": "t", "created": "c", "suite": "s", "versions": {}, "settings": settings}
    run.folder.mkdir(parents=True)
    (run.folder / "report.json").write_text(json.dumps({**report, "models": models}))
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))


def test_evaluations_on_the_way_and_the_rounds_they_fall_into(sweep, tmp_path):
    (run,) = sweep(0)
    logged = [
        {"step": 4, "eval_forget/exact_match": 1.0, "eval_runtime": 3.0, "loss": 9.0},
        {"step": 7, "eval_forget/exact_match": 0.8},
        {"step": 8, "eval_forget/exact_match": 0.6, "eval_forget_loss": 2.0},
        {"step": 8, "eval_retain_loss": 0.5},
        {"step": 10, "eval_forget/exact_match": 0.5},
        {"step": 13, "eval_forget/exact_match": 0.2, "eval_forget_loss": 4.0, "eval_model_utility": 0.7},
    ]
    finish(run, forget=0.1, logged=logged)
    (found,) = collect(tmp_path)["runs"]
    assert found["points"] == [
        {"step": 4, "values": {FORGET: 1.0}},
        {"step": 7, "values": {FORGET: 0.8}},
        {"step": 8, "values": {FORGET: 0.6, "forget/loss": 2.0, "retain/loss": 0.5}},
        {"step": 10, "values": {FORGET: 0.5}},
    ]
    # The end is what the report says of it, and what only the evaluation says.
    end = {FORGET: 0.1, RETAIN: 0.9, "forget/loss": 4.0, "model_utility": 0.7}
    assert found["values"] == end
    # Of a round, the last evaluation in its unlearning stage: none of an alignment after it.
    assert [(one["round"], one["threshold"]) for one in found["rounds"]] == [(1, 0.9), (2, 0.5)]
    assert found["rounds"][0]["values"] == {FORGET: 0.6, "forget/loss": 2.0, "retain/loss": 0.5}
    assert found["rounds"][1]["values"] == end


def test_a_round_that_was_not_evaluated_is_left_out(sweep, tmp_path):
    (run,) = sweep(0)
    finish(run, logged=[{"step": 10, "eval_forget/exact_match": 0.5}])
    assert [one["round"] for one in collect(tmp_path)["runs"][0]["rounds"]] == [2]


def test_what_is_missing_is_named(sweep, tmp_path):
    runs = sweep(0, 1, 2)
    finish(runs[0])
    finish(runs[1])
    # A report of other settings is of another run.
    text = (runs[1].folder / "report.json").read_text()
    (runs[1].folder / "report.json").write_text(text.replace('"benchmark": "world"', '"benchmark": "tofu"'))
    found = collect(tmp_path)
    assert [run["name"] for run in found["runs"]] == ["atu-seed0"]
    assert [(one["name"], one["why"]) for one in found["missing"]] == [
        ("atu-seed1", "no finished report"),
        ("atu-seed2", "no finished report"),
    ]
    assert found["planned"] == 3


def test_a_target_that_was_audited_differently_is_told(sweep, tmp_path):
    runs = sweep(0, 1)
    finish(runs[0], target=1.0)
    finish(runs[1], target=0.9)
    (base,) = collect(tmp_path)["baselines"]
    assert (base["metrics"][FORGET]["value"], base["disagrees"]) == (1.0, [FORGET])


def test_what_retraining_starts_from_is_no_target(sweep, tmp_path):
    runs = sweep(0, 1)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    lines[0] |= {"method": "retrain", "label": "retrain"}
    lines[0]["resolved"] |= {"train_on": "retain", "model_name_or_path": "empty"}
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for run, line in zip(runs, lines, strict=True):
        run.resolved.update(line["resolved"])
        finish(run)
    for run in reversed(runs):
        report = json.loads((run.folder / "report.json").read_text())
        if run is runs[0]:
            report["models"][0] |= {"path": "empty", "metrics": {FORGET: metric(0.0), RETAIN: metric(0.0)}}
        for model in report["models"]:
            model["metrics"][RETAIN]["interval"] = [model["metrics"][RETAIN]["value"]] * 2
        (run.folder / "report.json").write_text(json.dumps(report))
    found = collect(tmp_path)
    assert [(one["kind"], one["path"]) for one in found["baselines"]] == [("start", "empty"), ("target", "m")]
    assert [row.label for row in tabulate(found).of("target", "start")] == ["target"]
    # Beside its start nothing would be lost; both are held against the target.
    assert ["some of the rest is lost" in run["verdict"]["line"] for run in found["runs"]] == [True, True]
    # What is lost beside its start is still read by rules.
    found["settings"]["select"] = {"kind": "kept", "bound": 0.02, "forget": FORGET, "utility": RETAIN}
    assert tabulate(found).of("result")[0].label == "retrain"
    lines[0]["resolved"]["train_on"] = runs[0].resolved["train_on"] = "all"
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report["settings"][runs[0].name]["train_on"] = "all"
    (runs[0].folder / "report.json").write_text(json.dumps(report))
    assert [one["kind"] for one in collect(tmp_path)["baselines"]] == ["target", "target"]


def test_privacy_is_read_by_who_was_attacked(sweep, tmp_path):
    (run,) = sweep(0, privacy={"fprs": [0.1]})
    finish(run)
    assert collect(tmp_path)["missing"][0]["why"] == "no privacy audit"
    models = [
        {"name": "retrained", "kind": "retrained", "path": "r", **attacked(0.1)},
        {"name": "m", "kind": "attacked", "path": "m", **attacked(1.0)},
        {"name": run.name, "kind": "attacked", "path": "p", **attacked(0.4)},
    ]
    models[2]["metrics"]["loss/auc"]["per_item"] = [1.0] * 32
    (run.folder / "privacy").mkdir()
    text = json.dumps({"schema_version": 1, "title": "t", "models": models})
    (run.folder / "privacy" / "privacy.json").write_text(text)
    found = collect(tmp_path)
    assert found["missing"] == []
    values = {row.kind: row.cells["privacy/worst/tpr@1e-1"].mean for row in tabulate(found).rows}
    assert values == {"target": 1.0, "result": 0.4}
    assert "per_item" not in found["runs"][0]["privacy"]["metrics"]["loss/auc"]


def test_a_runs_verdict_knows_of_the_attacks_that_the_sweep_made(sweep, tmp_path):
    run, other = sweep(0, 1, privacy={"fprs": [0.1]})
    for one, rate in ((run, 0.4), (other, 0.1)):
        finish(one)
        report = json.loads((one.folder / "report.json").read_text())
        retrained = {"name": "retrained", "kind": "retrained", "path": "r"}
        report["models"].append({**retrained, "metrics": {FORGET: metric(0.1), RETAIN: metric(0.9)}})
        (one.folder / "report.json").write_text(json.dumps(report))
        (one.folder / "privacy").mkdir()
        models = [
            {**retrained, **attacked(0.1)},
            {"name": "m", "kind": "attacked", "path": "m", **attacked(1.0)},
            {"name": one.name, "kind": "attacked", "path": "p", **attacked(rate)},
        ]
        text = json.dumps({"schema_version": 1, "title": "t", "models": models})
        (one.folder / "privacy" / "privacy.json").write_text(text)
    found, quiet = (one["verdict"] for one in collect(tmp_path)["runs"])
    assert found["line"].startswith("? Answers like retrained, but attacks find the forget rows; ")
    assert quiet["line"].startswith("? Forgotten like retrained; ")
    assert quiet["short"] == quiet["line"]


def test_audits_that_were_made_later_into_a_runs_folder_are_read(sweep, tmp_path):
    runs = sweep(0, 1, 2)
    for run in runs:
        finish(run)
    worst = {**metric(0.7), "details": {"verdict": "suppressed"}}
    about = {"settings": {"bound": 0.2}}
    for run, path in zip(runs, ("p", "q"), strict=False):
        models = [
            {
                "name": "original",
                "kind": "original",
                "path": "m",
                "metrics": {"before/probability": metric(0.9)},
                **about,
            },
            {"name": "x", "kind": "audited", "path": path, "metrics": {"worst/remaining": worst}, **about},
        ]
        (run.folder / "quantize").mkdir()
        (run.folder / "quantize" / "quantize.json").write_text(json.dumps({"schema_version": 1, "models": models}))
    found = collect(tmp_path)
    name = "quantize/worst/remaining"
    assert [run["metrics"].get(name, {}).get("value") for run in found["runs"]] == [0.7, None, None]
    assert found["runs"][0]["values"][name] == 0.7
    assert [(one["name"], one["why"]) for one in found["missing"]] == [
        ("atu-seed1", "its quantize audit is of another model")
    ]
    # Runs that were not audited so say nothing of the target.
    (base,) = found["baselines"]
    assert base["metrics"]["quantize/before/probability"]["value"] == 0.9
    assert base["disagrees"] == []


def test_runs_that_were_attacked_otherwise_are_refused(sweep, tmp_path):
    for run, steps in zip(sweep(0, 1), (32, 8), strict=True):
        finish(run)
        about = {"name": "x", "kind": "audited", "path": "p", "settings": {"max_steps": steps}}
        models = [{**about, "metrics": {"worst/remaining": {**metric(0.7), "details": {}}}}]
        (run.folder / "relearn").mkdir()
        (run.folder / "relearn" / "relearn.json").write_text(json.dumps({"schema_version": 1, "models": models}))
    told = r"atu-seed0 and atu-seed1 do not compare: their relearn audits differ in max_steps \(32 and 8\)"
    with pytest.raises(ValueError, match=told):
        collect(tmp_path)


def audited_alone(folder: Path, value: float, rows: str = "rows") -> None:
    """A retrained model that `hf-unlearn eval` audited into the sweep's folder."""
    model = {
        "name": folder.name,
        "kind": "unlearned",
        "path": f"made/{folder.name}",
        "metrics": {FORGET: metric(value)},
    }
    model["audited"] = {"sets": {"forget": rows}}
    report = {"schema_version": 1, "title": "t", "created": "c", "suite": "s", "versions": {}, "settings": {}}
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({**report, "models": [model]}))


def test_further_retrained_models_stand_beside_the_runs_own(sweep, tmp_path, monkeypatch):
    (run,) = sweep(0, privacy={"fprs": [0.1]})
    finish(run)
    report = json.loads((run.folder / "report.json").read_text())
    gold = {"name": "retrained", "kind": "retrained", "path": "r", "metrics": {FORGET: metric(0.1)}}
    report["models"].append({**gold, "audited": {"sets": {"forget": "rows"}}})
    (run.folder / "report.json").write_text(json.dumps(report))
    for name, value in (("retrained-1", 0.2), ("retrained-2", 0.3)):
        audited_alone(tmp_path / "retrained" / name, value)
    first = tmp_path / "retrained" / "retrained-1"
    models = [{"name": "x", "kind": "attacked", "path": "made/retrained-1", **attacked(0.4)}]
    (first / "privacy").mkdir()
    text = json.dumps({"schema_version": 1, "title": "t", "models": models})
    (first / "privacy" / "privacy.json").write_text(text)
    worst = {
        "name": "x",
        "kind": "audited",
        "path": "made/retrained-1",
        "settings": {},
        "metrics": {"worst/remaining": metric(0.0)},
    }
    (first / "quantize").mkdir()
    (first / "quantize" / "quantize.json").write_text(json.dumps({"schema_version": 1, "models": [worst]}))
    found = collect(tmp_path)
    others = found["baselines"][-2:]
    assert [(one["kind"], one["path"]) for one in others] == [("retrained", f"made/retrained-{i}") for i in (1, 2)]
    # A place in the cache is called as the folder of its audit.
    monkeypatch.setenv("HF_UNLEARN_CACHE", "made")
    assert [one["path"] for one in collect(tmp_path)["baselines"][-2:]] == ["retrained-1", "retrained-2"]
    monkeypatch.delenv("HF_UNLEARN_CACHE")
    assert [one["metrics"][FORGET]["value"] for one in others] == [0.2, 0.3]
    assert others[0]["metrics"]["quantize/worst/remaining"]["value"] == 0.0
    assert others[0]["privacy"]["metrics"]["worst/tpr@1e-1"]["value"] == 0.4
    assert others[1]["privacy"] is None
    spread = spread_of(tabulate(found), FORGET)
    assert sorted(spread.values) == [0.1, 0.2, 0.3]
    # What was found in another model is not this one's.
    for name, text in (
        ("quantize", json.dumps({"schema_version": 1, "models": [{**worst, "path": "elsewhere"}]})),
        ("privacy", json.dumps({"schema_version": 1, "title": "t", "models": [{**models[0], "path": "x"}]})),
    ):
        file = first / name / f"{name}.json"
        kept = file.read_text()
        file.write_text(text)
        with pytest.raises(ValueError, match=f"retrained-1: its {name} audit is of another model than 'made/retra"):
            collect(tmp_path)
        file.write_text(kept)
    # Counted twice, one model would make the spread narrower.
    report = first / "report.json"
    kept = report.read_text()
    for path in ("r", "made/retrained-2"):
        (first / "quantize" / "quantize.json").unlink(missing_ok=True)
        (first / "privacy" / "privacy.json").unlink(missing_ok=True)
        report.write_text(kept.replace("made/retrained-1", path))
        with pytest.raises(ValueError, match="a spread requires other models"):
            collect(tmp_path)
    report.write_text(kept)
    # On other rows it is another number.
    audited_alone(tmp_path / "retrained" / "other", 0.2, rows="others")
    with pytest.raises(ValueError, match="other was not audited as the runs' retrained model was .differs in rows of"):
        collect(tmp_path)


def test_secrets_stay_out_of_the_list(sweep, tmp_path):
    sweep(0)
    (row,) = read_manifest(tmp_path)[0]
    assert "env" not in row["resolved"]
    assert Path(row["folder"]) == Path("runs/atu-seed0")
    with pytest.raises(ValueError, match="No sweep at"):
        read_manifest(tmp_path / "runs")
