# SPDX-License-Identifier: Apache-2.0
"""From models to the exit status of a pipeline: one command audits, another compares with the shipped thresholds.
Acceptance 20, with models that hide what they know, one that never knew, and too few people to tell."""

import json

import pytest
from known import files, model, refusing, rows_of, saved, within_the_codes

from hf_unlearn.cli.main import main


AUDITS = ("quantize", "relearn")
SETTINGS = ["--quantize", "{formats: [nf4]}"]
SETTINGS += ["--relearn", "{adapter: none, learning_rates: [3e-3], max_steps: 4, seeds: [0]}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of models, and files of rows."""
    folder = tmp_path_factory.mktemp("gated")
    made = {
        "original": model(),
        "retrained": model(knows=False),
        "again": model(knows=False, seed=1),
        "in_bin": within_the_codes(model()),
        "refusing": refusing(),
    }
    found = {name: saved(one, folder / name) for name, one in made.items()} | files(folder)
    two = [{**row, "person": f"{i % 2}"} for i, row in enumerate(rows_of("forget"))]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in two))
    return {**found, "two": str(folder / "two.jsonl"), "cache": str(folder / "cache")}


@pytest.mark.parametrize(
    ("name", "forget", "status", "said"),
    [
        ("in_bin", "forget_dataset", 1, {"quantize": "failed"}),
        ("refusing", "forget_dataset", 1, {"relearn": "failed"}),
        ("again", "forget_dataset", 0, {"quantize": "passed", "relearn": "passed"}),
        ("in_bin", "two", 3, {"quantize": "unresolved", "relearn": "unresolved"}),
        ("again", "two", 3, {"quantize": "unresolved", "relearn": "unresolved"}),
    ],
)
def test_gates_end_a_pipeline_as_the_model_is(place, tmp_path, monkeypatch, capsys, name, forget, status, said):
    monkeypatch.setenv("HF_UNLEARN_CACHE", place["cache"])
    models = ("--original_model_name_or_path", place["original"])
    models += ("--retrained_model_name_or_path", place["retrained"], "--model_name_or_path", place[name])
    rows = ("--forget_dataset", place[forget], "--retain_dataset", place["retain_dataset"], "--group_by", "person")
    words = ["audit", "robustness", "--audits", *AUDITS, *models, *rows, *SETTINGS]
    assert main([*words, "--max_length", "64", "--output_dir", str(tmp_path)]) == 0
    # What it writes is what `report` and `gates` read.
    (tmp_path / "robustness.md").unlink()
    assert main(["report", str(tmp_path / "robustness.json")]) == 0
    assert (tmp_path / "robustness.md").is_file()
    if status:
        with pytest.raises(SystemExit) as ended:
            main(["gates", str(tmp_path)])
        assert ended.value.code == status
    else:
        assert main(["gates", str(tmp_path)]) == 0
    capsys.readouterr()
    gates = json.loads((tmp_path / "gates.json").read_text())
    assert gates["thresholds"].endswith("gates_language.yaml")
    (judged,) = gates["models"]
    outcomes = {one["gate"]: one for one in judged["outcomes"]}
    assert outcomes.keys() == {*AUDITS}
    assert {gate: outcomes[gate]["status"] for gate in said} == said
    if forget == "two":
        assert all(one["why"].startswith("2 groups of rows; an interval requires 4") for one in judged["outcomes"])
    if status == 1:
        # Nobody sees it from outside.
        assert before(tmp_path, "exact_match") <= 0.05


def before(folder, score: str) -> float:
    """The model's score as it is."""
    (audited,) = [
        one for one in json.loads((folder / "robustness.json").read_text())["models"] if one["kind"] == "audited"
    ]
    return audited["audits"]["quantize"]["metrics"][f"before/{score}"]["value"]
