# SPDX-License-Identifier: Apache-2.0
"""Requests one after another: what each run starts from, forgets and audits, what is refused, and the one report.

Runs are real, and made in this process; `test_requests_killed` has processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, make_model
from safetensors.torch import load_file

from hf_unlearn.cli.main import main
from hf_unlearn.data.arguments import DataArguments
from hf_unlearn.report import load_report
from hf_unlearn.report.requests.table import points_of, rows_table, steps_table
from hf_unlearn.report.requests.write import load_requests
from hf_unlearn.runs.parser import read_yaml
from hf_unlearn.sweep import worker as working
from hf_unlearn.sweep.requests import plan_requests, read_requests


PEOPLE = ("Ada", "Bob", "Cyd")
FORGET = [
    {"question": f"{what} is {name}?", "answer": f"{name} {what}.", "person": name}
    for name in PEOPLE
    for what in ("Who", "Where")
]
RETAIN = [{"question": f"Where is the {thing}?", "answer": "On the table."} for thing in ("cup", "pen", "key")]
REQUESTS = [{"id": name.lower(), "forget_where": {"person": name}} for name in PEOPLE]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path, model_path, monkeypatch) -> Path:
    """A recipe's file; the working folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    make_model(seed=1).save_pretrained(tmp_path / "retrained")
    content = {
        "method": "npo",
        "retain_loss": "kl",
        "model_name_or_path": model_path,
        "retrained_model_name_or_path": str(tmp_path / "retrained"),
        "forget_dataset": write_rows(tmp_path / "forget.jsonl", FORGET),
        "retain_dataset": write_rows(tmp_path / "retain.jsonl", RETAIN),
        "output_dir": "out",
        "max_length": 64,
        "max_new_tokens": 4,
        "max_steps": 2,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def write(tmp_path):
    """Writes requests; gives the file."""

    def write(requests) -> str:
        (tmp_path / "requests.yaml").write_text(yaml.safe_dump(requests))
        return str(tmp_path / "requests.yaml")

    return write


@pytest.fixture
def here(monkeypatch):
    """Runs of a chain are made in this process, as their command would; the names of those that began."""
    begun = []

    def work(self, runs, titles):
        for run in runs:
            begun.append(run.name)
            run.folder.mkdir(parents=True, exist_ok=True)
            status = main(working._run_command(run, self.accelerate_config)[3:])
            self.outcomes[run.name] = working.FAILED if status else working.FINISHED
        return self.outcomes

    monkeypatch.setattr(working.Worker, "work", work)
    return begun


def plan(recipe: Path, requests: str, *words: str, start: str = "last"):
    argv = ["--config", str(recipe), *words]
    return plan_requests(read_yaml(recipe), str(recipe), argv, read_requests(requests), Path("out"), start)


def test_each_request_starts_from_the_last_result_and_earlier_ones_are_audited(recipe, write, here, capsys):
    file = write(REQUESTS)
    assert main(["run", str(recipe), "--requests", file, "--beta", "0.5"]) == 0
    assert here == ["01-ada", "02-bob", "03-cyd"]
    folders = [Path("out-requests", name) for name in here]
    reports = [load_report(folder) for folder in folders]
    for before, after in zip(folders, reports[1:], strict=False):
        assert after["models"][0]["path"] == str(before)
    # Each trained away from what it started from.
    states = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(not torch.equal(states[i]["lm_head.weight"], states[i + 1]["lm_head.weight"]) for i in (0, 1))
    settings = [report["settings"][name] for report, name in zip(reports, here, strict=True)]
    assert [one["beta"] for one in settings] == [0.5] * 3
    sets = [sorted(name for name in one["audited_sets"]) for one in settings]
    assert sets == [["holdout_bob", "holdout_cyd"], ["forget_ada", "holdout_cyd"], ["forget_ada", "forget_bob"]]

    found = load_requests("out-requests")
    assert (found["missing"], found["start"]) == ([], "last")
    assert [step["request"] for step in found["steps"]] == [None, "ada", "bob", "cyd"]
    assert [request["rows"] for request in found["requests"]] == [2, 2, 2]
    for number, (report, name) in enumerate(zip(reports, ("ada", "bob", "cyd"), strict=True), start=1):
        metrics = {model["kind"]: model for model in report["models"]}["unlearned"]["metrics"]
        groups = found["steps"][number]["groups"]
        assert groups[name]["probability"] == metrics["forget/probability"]
        for other, told in {"ada": groups["ada"], "bob": groups["bob"], "cyd": groups["cyd"]}.items():
            if other != name:
                kind = "forget" if ("ada", "bob", "cyd").index(other) < number - 1 else "holdout"
                assert told["probability"] == metrics[f"{kind}_{other}/probability"]
                assert told["probability"]["n"] == 2
        assert found["steps"][number]["kept"]["retain/probability"] == metrics["retain/probability"]
    # What a run found before it trained is what the one before left.
    target = reports[1]["models"][0]["metrics"]
    left = found["steps"][1]["groups"]
    assert target["forget/probability"]["value"] == pytest.approx(left["bob"]["probability"]["value"], rel=1e-5)
    assert target["forget_ada/probability"]["value"] == pytest.approx(left["ada"]["probability"]["value"], rel=1e-5)
    assert set(found["retrained"]["groups"]) == {"ada", "bob", "cyd"}
    points = points_of(found)
    assert [sorted(point.before) for point in points] == [[], [], ["ada"], ["ada", "bob"]]
    assert [point.rows for point in points] == [0, 2, 4, 6]
    assert len(rows_table(found).rows) == 4
    assert len(steps_table(found).rows) == 5
    assert "plots/requests.png" in Path("out-requests/requests.md").read_text()

    # Again: nothing is left to do. Then the last is gone, and is all that is done.
    capsys.readouterr()
    here.clear()
    assert main(["run", str(recipe), "--requests", file, "--beta", "0.5"]) == 0
    assert "3 requests, 3 served already." in capsys.readouterr().out
    (folders[2] / "report.json").unlink()
    assert main(["run", str(recipe), "--requests", file, "--beta", "0.5"]) == 0
    assert here == ["03-cyd"]
    # A result whose origin is gone is no result of this chain.
    (folders[1] / "report.json").unlink()
    assert main(["run", str(recipe), "--requests", file, "--beta", "0.5"]) == 2
    assert "was made from an earlier one" in capsys.readouterr().err
    assert main(["run", str(recipe), "--requests", file]) == 2
    assert "holds another run, which differs in beta" in capsys.readouterr().err


def test_a_new_adapter_is_added_to_the_last_result_with_its_own_merged(recipe, write, here):
    from peft import AutoPeftModelForCausalLM

    words = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
    assert main(["run", str(recipe), "--requests", write(REQUESTS[:2]), *words]) == 0
    first, second = (Path("out-requests", name) for name in here)
    merged = AutoPeftModelForCausalLM.from_pretrained(first).merge_and_unload().state_dict()
    entered = load_file(first / "merged" / "model.safetensors")
    for name, weight in entered.items():
        torch.testing.assert_close(weight, merged[name], msg=name)
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == f"{first}/merged"
    target = load_report(second)["models"][0]["metrics"]
    left = load_requests("out-requests")["steps"][1]["groups"]
    assert target["forget_ada/probability"]["value"] == pytest.approx(left["ada"]["probability"]["value"], rel=1e-4)


def test_growing_sets_each_start_from_the_original(recipe, write, here, model_path):
    sets = [{"id": f"p{n}", "forget_where": {"person": list(PEOPLE[:n])}} for n in (1, 3)]
    assert main(["run", str(recipe), "--requests", write(sets), "--requests_from", "original"]) == 0
    found = load_requests("out-growing")
    assert [request["rows"] for request in found["requests"]] == [2, 6]
    assert [point.rows for point in points_of(found)] == [0, 2, 6]
    assert rows_table(found) is None
    for name in here:
        report = load_report(Path("out-growing", name))
        assert report["models"][0]["path"] == model_path
        assert not report["settings"][name].get("audited_sets")
    assert found["steps"][0]["groups"].keys() == {"p1", "p3"}


def test_a_failure_ends_the_chain_and_growing_sets_go_on(recipe, write, here, monkeypatch, capsys):
    real = working._run_command

    def failing(run, config):
        command = real(run, config)
        return [*command, "--lossy", "1"] if run.name.startswith("01") else command

    monkeypatch.setattr(working, "_run_command", failing)
    assert main_status(["run", str(recipe), "--requests", write(REQUESTS)]) == 1
    assert here == ["01-ada"]
    said = capsys.readouterr()
    assert "Not finished: 02-bob (not begun)" in said.err
    assert "Not served yet: ada, bob, cyd." in Path("out-requests/requests.md").read_text()
    here.clear()
    words = ["--requests_from", "original", "--max_steps", "1"]
    assert main_status(["run", str(recipe), "--requests", write(REQUESTS[:2]), *words]) == 1
    assert here == ["01-ada", "02-bob"]


def main_status(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as ended:
        return ended.code


BAD_FILES = {
    "no list": ({"id": "a"}, "give a list of requests"),
    "none": ([], "give a list of requests"),
    "no id": ([{"forget_split": "x"}], "request 1: id=None; give a text"),
    "an id that is no folder's": ([{"id": "a/b"}], "id='a/b'; give a text"),
    "an id twice": ([{"id": "a", "seed": 1}, {"id": "a", "seed": 2}], "the id 'a' is an earlier request's"),
    "the same twice": ([{"id": "a", "seed": 1}, {"id": "b", "seed": 1}], "'b' and 'a' ask for the same"),
    "a model": ([{"id": "a", "model_name_or_path": "x"}], "model_name_or_path cannot be given"),
}


@pytest.mark.parametrize(("requests", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_meant_is_refused(write, requests, told):
    with pytest.raises(ValueError, match=told):
        read_requests(write(requests))


def test_json_is_read_too_and_a_missing_file_is_told(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(REQUESTS))
    assert [request.id for request in read_requests(tmp_path / "r.json")] == ["ada", "bob", "cyd"]
    with pytest.raises(ValueError, match="--requests: no file at"):
        read_requests(tmp_path / "none.yaml")


BAD_REQUESTS = {
    "a column that is not there": ({"forget_where": {"name": "Ada"}}, (), "names the column 'name'"),
    "a value that no row has": ({"forget_where": {"person": "Eve"}}, (), "have no person='Eve'. There are: 'Ada'"),
    "an unknown field": ({"forget_wear": {}}, (), "request 'b': Unknown field 'forget_wear'"),
    "rows that are not there": ({"forget_dataset": "no.jsonl"}, (), "No file or folder at 'no.jsonl'"),
    "no audit": ({"seed": 3}, ("--audit", "false"), "requests are followed by audits"),
    "a run's option": ({"seed": 3}, ("--overwrite_output", "true"), "--overwrite_output does not go with"),
    "retraining": ({"seed": 3}, ("--method", "retrain", "--retain_loss", "nll"), "starts from untrained weights"),
    "rows of the first among those to keep": (
        {"forget_where": {"person": "Bob"}, "retain_dataset": "both.jsonl"},
        (),
        "request 'b': 2 of its retain rows are forget rows of 'a'",
    ),
    "a start that there is not": ({"seed": 3}, (), "--requests_from first; allowed: last, original"),
}


@pytest.mark.parametrize(("fields", "words", "told"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_any_bad_request_is_refused_before_a_model_is_loaded(recipe, write, unloaded, fields, words, told):
    write_rows(Path("both.jsonl"), RETAIN + [{k: row[k] for k in ("question", "answer")} for row in FORGET[:2]])
    if "--method" in words:
        content = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump({k: v for k, v in content.items() if k != "retain_loss"}))
        words = words[:2]
    file = write([REQUESTS[0] | {"id": "a"}, {"id": "b", **fields}])
    with pytest.raises(ValueError, match=told):
        plan(recipe, file, *words, start="first" if "first" in told else "last")
    assert not Path("out").exists()


def test_rows_are_chosen_by_one_value_or_several():
    for given in ({"person": "Ada"}, "{person: Ada}"):
        assert DataArguments(forget_dataset="x", forget_where=given).forget_where == {"person": "Ada"}
    for bad in ("Ada", {}, {"person": {"a": 1}}, {"person": []}):
        with pytest.raises(ValueError, match="forget_where="):
            DataArguments(forget_dataset="x", forget_where=bad)


BAD_SETS = {
    "no role": ({"before": "forget.jsonl"}, "begins with its role"),
    "a set that is there": ({"forget": "forget.jsonl"}, "an audited set's already"),
    "a name of paraphrases": ({"forget_paraphrased": "forget.jsonl"}, "an audited set's already"),
    "no file": ({"forget_b": "none.jsonl"}, "No file or folder at 'none.jsonl'"),
}


@pytest.mark.parametrize(("sets", "told"), BAD_SETS.values(), ids=BAD_SETS)
def test_a_set_that_cannot_be_audited_is_refused(recipe, write, unloaded, sets, told):
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "audited_sets": sets}))
    with pytest.raises(ValueError, match=told):
        plan(recipe, write(REQUESTS))


def test_an_audit_that_reads_a_whole_benchmark_does_not_follow_a_choice_of_rows():
    from hf_unlearn.audit.registry import AUDITS
    from hf_unlearn.runs.audits import block_fields

    recipe = {"model_name_or_path": "m", "benchmark": "world", "forget_where": {"person": "Ada"}}
    with pytest.raises(ValueError, match="scan: reads all forget rows of a benchmark"):
        block_fields(AUDITS["scan"], recipe, {}, "out")
    assert block_fields(AUDITS["privacy"], recipe, {}, "out")["forget_where"] == {"person": "Ada"}


def test_the_shipped_requests_are_the_world_s_people():
    from hf_unlearn.data.worlds.people.config import WorldConfig
    from hf_unlearn.data.worlds.people.world import PeopleBuilder

    people = list(dict.fromkeys(row["person"] for row in PeopleBuilder(0, WorldConfig()).sets["forget"]))
    asked = read_requests(ROOT / "recipes" / "demo" / "requests.yaml")
    assert [request.fields["forget_where"]["person"] for request in asked] == people
    growing = read_requests(ROOT / "recipes" / "demo" / "growing.yaml")
    assert [request.fields["forget_where"]["person"] for request in growing] == [people[: n + 1] for n in range(4)]


@pytest.mark.drawn
def test_the_curve_is_drawn(tmp_path):
    from hf_unlearn.report.requests.write import write_requests

    def metric(value):
        return {"value": value, "n": 8, "interval": [max(value - 0.1, 0), min(value + 0.1, 1)], "direction": "lower"}

    groups = [{"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.9}, {"a": 0.2, "b": 0.0}]
    steps = [
        {"step": i, "request": name, "seconds": None, "kept": {"retain/exact_match": metric(1.0 - 0.1 * i)},
         "groups": {key: {"exact_match": metric(value)} for key, value in groups[i].items()}}
        for i, name in enumerate((None, "a", "b"))
    ]  # fmt: skip
    found = {
        "requests_version": 1, "created": "c", "title": "npo", "command": None, "start": "last",
        "requests": [{"id": "a", "rows": 8, "fields": {}}, {"id": "b", "rows": 8, "fields": {}}],
        "forget": "exact_match", "utility": "model_utility", "steps": steps, "retrained": None, "missing": [],
    }  # fmt: skip
    assert write_requests(found, tmp_path)["plots/requests.png"].stat().st_size > 10_000
    text = (tmp_path / "requests.md").read_text()
    # The request that came back after the next one: 20 %.
    assert "| 2 | b | 16 | 0.0<br>[0.0, 10.0] | 20.0 | 20.0<br>[10.0, 30.0] | 80.0<br>[70.0, 90.0] |" in text


@pytest.mark.slow
def test_requests_that_are_killed_go_on(recipe, write):
    content = yaml.safe_load(recipe.read_text()) | {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "hf_unlearn.cli.main", "run", str(recipe), "--requests", write(REQUESTS[:2])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    how = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **how)
    second, end = Path("out-requests/02-bob/checkpoint-1/complete.json"), time.monotonic() + 300
    while not second.is_file():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped. The same command goes on." in said
    first = Path("out-requests/01-ada/report.json").read_bytes()
    process = subprocess.Popen(command, **how)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "2 requests, 1 served already." in said
    assert "02-bob: goes on" in said
    assert Path("out-requests/01-ada/report.json").read_bytes() == first
    assert load_requests("out-requests")["missing"] == []
