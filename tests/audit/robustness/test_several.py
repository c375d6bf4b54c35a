# SPDX-License-Identifier: Apache-2.0
"""Several audits of robustness at once: the command, the recipe's block, what they say together, and refusals."""

import json

import pytest
import yaml
from conftest import make_model, make_tokenizer

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.audit.robustness.several.view import worst_of
from hf_unlearn.cli.main import main
from hf_unlearn.report.verdict import returns_line, verdicts
from hf_unlearn.runs.blocks import attack_blocks


WORDS = ("cup", "pen", "key", "hat", "bag", "map", "jar", "box")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model before and one that never knew, of random weights, and 16 forget rows about 4 people."""
    folder = tmp_path_factory.mktemp("place")
    for seed, name in enumerate(("target", "retrained", "mine")):
        make_model(seed=seed, hidden_size=16).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for kind in ("forget", "retain"):
        rows = [
            {"question": f"Where is {kind} {word}?", "answer": f"In room {i}.", "person": f"p{i % 4}"}
            for i, word in enumerate(WORDS * 2)
        ]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(place, output, *words, model="mine", forget="forget.jsonl"):
    about = ["--model_name_or_path", str(place / model), "--forget_dataset", str(place / forget)]
    about += ["--max_length", "64", "--output_dir", str(output)]
    return main(["audit", "robustness", *about, *words])


def test_one_command_makes_all_and_one_report(place, tmp_path, capsys):
    words = ["--audits", "quantize", "sampling", "--group_by", "person"]
    words += ["--quantize", "{formats: [int8], prune: [0.5]}", "--sampling", "{ks: [1, 32]}"]
    words += ["--original_model_name_or_path", str(place / "target")]
    words += ["--retrained_model_name_or_path", str(place / "retrained")]
    assert command(place, tmp_path, *words) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found["audits"] == ["quantize", "sampling"]
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == ["retrained", "original", "mine"]
    alone = json.loads((tmp_path / "quantize" / "quantize.json").read_text())
    (own,) = [model for model in alone["models"] if model["name"] == "mine"]
    assert {"int8/probability/remaining", "prune0.5/probability/remaining"} <= own["metrics"].keys()
    assert models["mine"]["audits"]["quantize"]["metrics"].keys() == own["metrics"].keys()
    # Models of random weights knew nothing.
    line = models["mine"]["verdict"]
    assert line == "? unresolved whether it comes back by quantize, sampling"
    assert "leak_exact@32/remaining" in models["mine"]["audits"]["sampling"]["metrics"]
    text = (tmp_path / "robustness.md").read_text()
    files = ("quantize/quantize.md", "sampling/sampling.md")
    for told in (line, "too little was there to forget", "does not show that knowledge", *files):
        assert told in text
    assert "unresolved whether it comes back" in " ".join(said.split())
    # Drawn again from the file alone.
    (tmp_path / "robustness.md").unlink()
    assert main(["report", str(tmp_path / "robustness.json")]) == 0
    assert (tmp_path / "robustness.md").read_text() == text


def test_a_folder_without_a_run_can_be_gated(place, tmp_path, capsys):
    words = ["--audits", "quantize", "--original_model_name_or_path", str(place / "target"), "--group_by", "person"]
    assert command(place, tmp_path, *words, "--retrained_model_name_or_path", str(place / "retrained")) == 0
    (tmp_path / "own.yaml").write_text("back: {metric: '*/probability/remaining', at_most: 0.2}\n")
    with pytest.raises(SystemExit, match="3"):
        main(["gates", str(tmp_path), "--thresholds", str(tmp_path / "own.yaml")])
    (model,) = json.loads((tmp_path / "gates.json").read_text())["models"]
    assert (model["name"], model["status"]) == ("mine", "unresolved")
    assert "too little was there to forget" in model["outcomes"][0]["why"]
    # Of the shipped ones those on audits that were made.
    with pytest.raises(SystemExit, match="3"):
        main(["gates", str(tmp_path / "robustness.json")])
    assert list(json.loads((tmp_path / "gates.json").read_text())["gates"]) == ["quantize"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "audits=None; give a list of attacks. Allowed: relearn, quantize"),
        (["--audits", "quantise"], "'quantise' is no attack. Did you mean 'quantize'?"),
        (["--audits", "perplexity"], "'perplexity' is no attack."),
        (["--audits", "quantize", "--quantize", "{formats: [nf5]}"], "quantize: formats: 'nf5' is unknown"),
        (["--audits", "quantize", "--group_by", "city"], "quantize: group_by='city': row 0 of the forget set has no"),
        (["--audits", "quantize", "--lenght", "4"], "Unknown field 'lenght' on the command line"),
    ],
)
def test_what_cannot_work_is_one_line_before_a_model_is_loaded(place, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    assert command(place, tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("hf-unlearn: error: ")
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Where?", "answer": " "}] * 8, "Row 0 of the forget set has an empty `answer`"),
        ([{"question": "Where?"}] * 8, "answer"),
    ],
)
def test_forget_rows_without_answers_are_one_line(place, tmp_path, monkeypatch, capsys, rows, message):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    (place / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(place, tmp_path / "out", "--audits", "quantize", forget="bare.jsonl") == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("hf-unlearn: error: ")
    assert message in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no original model to compare with"),
        (["--original_model_name_or_path", "target"], "no model or rows that never knew the answers to compare with"),
    ],
)
def test_what_can_be_said_without_other_models_is_before_and_after(place, tmp_path, capsys, words, reason):
    words = [str(place / word) if word == "target" else word for word in words]
    assert command(place, tmp_path, "--audits", "quantize", *words) == 0
    capsys.readouterr()
    (mine,) = [m for m in json.loads((tmp_path / "robustness.json").read_text())["models"] if m["name"] == "mine"]
    metrics = mine["audits"]["quantize"]["metrics"]
    assert metrics["nf4/probability/after"]["value"] is not None
    assert metrics["before/probability"]["value"] is not None
    worst = mine["metrics"]["worst/remaining"]
    assert (worst["value"], worst["details"]["reason"]) == (None, reason)
    assert reason in (tmp_path / "robustness.md").read_text()


def test_a_block_of_a_recipe_is_a_block_for_each():
    block = {"audits": ["quantize"], "group_by": "person", "quantize": {"formats": ["nf4"]}}
    assert attack_blocks(block) == {"quantize": {"group_by": "person", "formats": ["nf4"]}}
    assert attack_blocks({"audits": ["quantize"], "max_items": 9}) == {"quantize": {"max_items": 9}}
    with pytest.raises(ValueError, match="'formats' is no field of every attack. Give it under the name of one"):
        attack_blocks({"audits": ["quantize"], "formats": ["nf4"]})


def test_a_run_is_audited_and_its_line_says_so(place, tmp_path, capsys):
    content = {
        "method": "ga",
        "retain_loss": "nll",
        "model_name_or_path": str(place / "target"),
        "retrained_model_name_or_path": str(place / "retrained"),
        "forget_dataset": str(place / "forget.jsonl"),
        "retain_dataset": str(place / "retain.jsonl"),
        "robustness": {"audits": ["quantize"], "group_by": "person", "quantize": {"formats": ["int8"]}},
        "max_new_tokens": 4,
        "max_length": 64,
        "max_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(content))
    assert main(["run", str(recipe), "--output_dir", str(folder)]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["machine"]["processors"] >= 1
    (verdict,) = verdicts(report)
    assert verdict.line.endswith("unresolved whether it comes back by quantize")
    for name in ("report.md", "report.html", "README.md"):
        assert verdict.line in (folder / name).read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in card.splitlines() if line.startswith("- `quantize`: unresolved: ")]
    assert "too little was there to forget; 1 setting, " in line
    assert line.endswith(" seconds.")
    recipe.write_text(yaml.safe_dump({**content, "audits": {"quantize": {}}}))
    capsys.readouterr()
    assert main(["run", str(recipe), "--output_dir", str(folder)]) == 2
    assert "`robustness` and `audits` both ask for quantize" in capsys.readouterr().err


def test_gates_see_what_was_audited_after_the_run(place, tmp_path, capsys):
    model = {"name": "mine", "kind": "unlearned", "path": str(place / "mine"), "method": None, "metrics": {}}
    report = {"schema_version": 1, "title": "t", "created": "c", "suite": "s", "versions": {}, "settings": {}}
    (tmp_path / "report.json").write_text(json.dumps({**report, "models": [model]}))
    (tmp_path / "own.yaml").write_text("back: {metric: quantize/worst/remaining, at_most: 0.2, optional: true}\n")

    def why() -> str:
        with pytest.raises(SystemExit, match="3"):
            main(["gates", str(tmp_path), "--thresholds", str(tmp_path / "own.yaml")])
        return json.loads((tmp_path / "gates.json").read_text())["models"][0]["outcomes"][0]["why"]

    assert why() == "no such audit; optional"
    assert command(place, tmp_path, "--audits", "quantize") == 0
    assert why() == "no original model to compare with"
    capsys.readouterr()


def remaining(value, high=None, verdict="suppressed", which="probability/remaining", **details):
    interval = None if value is None else [2 * value - high, high]
    details = {"verdict": verdict, "which": which, **details}
    return {"value": value, "interval": interval, "n": 32, "direction": "lower", "variant": None, "details": details}


def test_the_worst_of_several_is_the_one_that_reaches_highest():
    kept = "not recovered within budget"
    audits = {
        "quantize": remaining(0.1, 0.15, kept, "nf4/probability/remaining"),
        "relearn": remaining(0.08, 0.19, kept),
        "sampling": remaining(None, verdict="unresolved", reason="3 groups"),
    }
    model = {"audits": {kind: {"metrics": {"worst/remaining": metric}} for kind, metric in audits.items()}}
    assert worst_of(model)["details"]["which"] == "relearn/probability/remaining"
    said = "✓ not recovered within budget by quantize, relearn; unresolved whether it comes back by sampling"
    assert returns_line(model) == said
    model["audits"]["relearn"]["metrics"]["worst/remaining"] = remaining(0.9, 0.95)
    assert returns_line(model) == "✗ suppressed: comes back by relearn"
    assert worst_of({"audits": {"perplexity": {"metrics": {}}}}) is None
    assert returns_line({"audits": {"perplexity": {"metrics": {}}}}) is None


def test_columns_that_only_an_attack_reads_are_part_of_what_is_kept(place, tmp_path):
    """Rows of the same questions and answers with another paraphrase, or of other persons, are measured anew."""
    rows = [json.loads(line) for line in (place / "forget.jsonl").read_text().splitlines()]
    models = ["--original_model_name_or_path", str(place / "target")]
    models += ["--retrained_model_name_or_path", str(place / "retrained"), "--group_by", "person"]

    def found(name: str, paraphrase: str, persons: int) -> dict:
        changed = [
            {**row, "paraphrased_question": f"{paraphrase} {row['question']}", "person": f"p{i % persons}"}
            for i, row in enumerate(rows)
        ]
        forget = tmp_path / "edited.jsonl"
        forget.write_text("".join(json.dumps(row) + "\n" for row in changed))
        words = ["--audits", "prompts", "--prompts", "{transforms: [paraphrase]}", *models]
        assert command(place, tmp_path / name, *words, forget=forget) == 0
        (mine,) = [
            model
            for model in json.loads((tmp_path / name / "prompts" / "prompts.json").read_text())["models"]
            if model["name"] == "mine"
        ]
        return mine

    def values(model: dict) -> list:
        return model["measured"][0]["tested"]["logps"]

    first, other, fewer = found("first", "Say:", 4), found("other", "Zz qq!", 4), found("fewer", "Say:", 8)
    assert values(first) != values(other)
    assert values(first) == values(fewer)
    assert len({*fewer["settings"]["groups"]}) == 8


def test_a_preset_of_all_is_that_of_each_and_what_is_given_stays(place, tmp_path):
    words = ["--audits", "quantize", "sampling", "representation", "--group_by", "person", "--preset", "quick"]
    words += ["--representation", "{parts: [lens], max_items: 9}"]
    words += ["--original_model_name_or_path", str(place / "target")]
    assert command(place, tmp_path, *words, "--retrained_model_name_or_path", str(place / "retrained")) == 0
    settings = {
        name: json.loads((tmp_path / name / f"{name}.json").read_text())["settings"]
        for name in ("quantize", "sampling", "representation")
    }
    assert {name: found["preset"] for name, found in settings.items()} == dict.fromkeys(settings, "quick")
    assert settings["quantize"]["formats"] == ["nf4"]
    assert (settings["representation"]["seeds"], settings["representation"]["max_items"]) == ([0], 9)


def test_the_preset_of_a_method_is_not_that_of_an_attack():
    recipe = {"model_name_or_path": "m", "benchmark": "world", "preset": "readme", "max_length": 64, "steps": 3}
    taken = AUDITS["soft_prompt"].taken_over(recipe)
    assert "preset" not in taken
    assert "steps" not in taken
    assert taken["benchmark"] == "world"
