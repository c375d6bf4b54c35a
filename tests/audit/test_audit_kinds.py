# SPDX-License-Identifier: Apache-2.0
"""One road for every kind of audit, walked with perplexity: command, recipe, report, sweep, gates and card."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_model, make_tokenizer
from rich.console import Console
from sweep_runs import run_of, sweep_of
from vilt import make_processor, make_vilt

from hf_unlearn.audit.base import AuditResult
from hf_unlearn.audit.perplexity.measure import perplexity
from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.cli.main import main
from hf_unlearn.report import load_report, print_report
from hf_unlearn.report.gates.evaluate import judge
from hf_unlearn.report.gates.spec import read_gates


WORDS = ("cup", "pen", "key", "hat", "bag", "map", "jar", "box")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    for seed, name in enumerate(("target", "retrained")):
        make_model(seed=seed, hidden_size=16).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for kind in ("forget", "retain"):
        rows = [{"question": f"Where is {kind} {word}?", "answer": f"In room {i}."} for i, word in enumerate(WORDS)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": f"The {word} is here. " * (1 + i)} for i, word in enumerate(WORDS)]
    (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


def fields(place: Path, **more) -> dict:
    return {
        "method": "ga",
        "retain_loss": "nll",
        "model_name_or_path": str(place / "target"),
        "retrained_model_name_or_path": str(place / "retrained"),
        "forget_dataset": str(place / "forget.jsonl"),
        "retain_dataset": str(place / "retain.jsonl"),
        "audits": {"perplexity": {"dataset_name": str(place / "general.jsonl"), "batch_size": 3}},
        "max_new_tokens": 4,
        "audit_max_items": 4,
        "max_length": 64,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **more,
    }


def run(folder: Path, content: dict, *words: str) -> int:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(content))
    return main(["run", str(recipe), "--output_dir", str(folder), *words])


@pytest.fixture(scope="module")
def finished(place) -> Path:
    folder = place / "runs" / "one"
    folder.parent.mkdir()
    assert run(folder, fields(place)) == 0
    return folder


def asked(place: Path, *words: str) -> list[str]:
    general = str(place / "general.jsonl")
    return ["audit", "perplexity", "--dataset_name", general, "--max_length", "64", "--batch_size", "3", *words]


# The measure


def test_perplexity_is_that_of_all_tokens():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, size=200)
    losses = tokens * rng.gamma(4.0, 0.5, size=200)
    found = perplexity(-losses, tokens.tolist())
    mean = losses.sum() / tokens.sum()
    assert found["nll"].value == pytest.approx(mean)
    assert found["perplexity"].value == pytest.approx(math.exp(mean))
    assert found["perplexity"].details == {"tokens": int(tokens.sum())}
    # The delta method against resampled rows.
    picks = rng.integers(200, size=(4000, 200))
    resampled = losses[picks].sum(1) / tokens[picks].sum(1)
    width = np.diff(np.percentile(resampled, [2.5, 97.5]))[0]
    assert np.diff(found["nll"].interval)[0] == pytest.approx(width, rel=0.1)
    assert found["perplexity"].interval == pytest.approx([math.exp(end) for end in found["nll"].interval])


@pytest.mark.parametrize(
    ("logps", "tokens", "value", "n", "undefined"),
    [
        ([-2.0, math.nan, -4.0], [1, 1, 2], math.exp(2.0), 2, 1),
        ([-2.0, 0.0], [1, 0], math.exp(2.0), 1, 1),
        ([], [], None, 0, 0),
        # A broken model: what no float holds is undefined, and its loss is still told.
        ([-1e4, -1e4], [1, 1], None, 2, 0),
    ],
)
def test_what_is_undefined_is_counted(logps, tokens, value, n, undefined):
    found = perplexity(logps, tokens)["perplexity"]
    assert (found.value, found.n, found.undefined) == (pytest.approx(value), n, undefined)
    assert found.interval is None


def test_a_result_is_json_both_ways(tmp_path):
    result = AuditResult(perplexity([-2.0, -3.0], [1, 2]), {"rows": "abc"}, {"seconds": 1.0})
    assert AuditResult.load(result.save(tmp_path / "a.json")) == result
    with pytest.raises(ValueError, match="No audit result at"):
        AuditResult.load(tmp_path / "b.json")


# The command


def test_the_command_measures_what_transformers_does(place, tmp_path):
    words = asked(place, "--retrained_model_name_or_path", str(place / "retrained"))
    assert main([*words, "--model_name_or_path", str(place / "target"), "--output_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "perplexity.json").read_text())
    assert [(model["name"], model["kind"]) for model in found["models"]] == [
        ("retrained", "retrained"), ("target", "audited"),
    ]  # fmt: skip
    # Again from the plain model: every text cut into rows of 64 tokens, as training cuts them.
    from hf_unlearn.data.formats import encode
    from hf_unlearn.data.sources import load_rows

    model, tokenizer = make_model(seed=0, hidden_size=16), make_tokenizer()
    rows = load_rows(str(place / "general.jsonl"), tokenizer=tokenizer, max_length=64, chunk_text=True)
    import torch

    total = count = 0
    for row in (encode(row, tokenizer, 64) for row in rows):
        ids = torch.tensor([row["input_ids"]])
        total += model(ids, labels=ids).loss.item() * (len(row["input_ids"]) - 1)
        count += len(row["input_ids"]) - 1
    metric = found["models"][1]["metrics"]["perplexity"]
    assert metric["value"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert metric["details"]["tokens"] == count
    assert metric["interval"][0] < metric["value"] < metric["interval"][1]
    told = (tmp_path / "perplexity.md").read_text()
    assert "| target |" in told
    assert f"{metric['value']:.4g}" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`--dataset_name` is missing"),
        (["--dataset_name", "nowhere.jsonl"], "No file or folder at 'nowhere.jsonl'"),
        (["--max_length", "1"], "max_length=1; give a whole number of at least 2"),
        (["--dataset_name", "x", "--lenght", "4"], "Unknown field 'lenght' on the command line. Did you mean"),
    ],
)
def test_what_cannot_work_is_told_before_a_model_is_loaded(place, monkeypatch, capsys, words, message):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    given = words if not words or "--dataset_name" in words else ["--dataset_name", "x", *words]
    assert main(["audit", "perplexity", "--model_name_or_path", str(place / "target"), *given]) == 2
    assert message in capsys.readouterr().err


ROWS = {
    "short": [{"text": "The cup is here."}],
    "long": [{"text": "The cup is here. " * 400}],
    "none": [{"text": "The cup is here."}, {"text": None}],
    "unanswered": [{"prompt": "Where?", "completion": ""}],
    "cut": [{"prompt": "Where is it? " * 60, "completion": "Here."}],
}


@pytest.mark.parametrize(
    ("model", "rows", "length", "message"),
    [
        ("target", "long", 1024, "'{model}' reads at most 512 (`max_position_embeddings`"),
        ("target", "none", 64, "Row 1 of"),
        ("target", "unanswered", 64, "Row 0 of the general text set: `completion` is empty"),
        ("target", "cut", 64, "None of the 1 general text rows keeps a token"),
        ("vilt", "short", 64, "its config names one of the classifiers"),
    ],
)
def test_rows_and_models_that_do_not_go_together_are_refused(
    place, tmp_path, monkeypatch, capsys, model, rows, length, message
):
    make_vilt().save_pretrained(place / "vilt")
    make_processor().save_pretrained(place / "vilt")
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    file, path = tmp_path / "rows.jsonl", str(place / model)
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[rows]))
    words = ["audit", "perplexity", "--model_name_or_path", path, "--dataset_name", str(file)]
    assert main([*words, "--max_length", str(length), "--output_dir", str(tmp_path / "out")]) == 2
    assert message.format(model=path) in capsys.readouterr().err


def test_a_model_is_not_its_own_retrained_model(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    models = ["--model_name_or_path", str(place / "target"), "--retrained_model_name_or_path", f"{place}/target/"]
    assert main([*asked(place, *models), "--output_dir", str(tmp_path / "out")]) == 2
    assert "is the audited model itself" in capsys.readouterr().err


def test_empty_texts_are_no_texts(place, tmp_path):
    texts = ["The cup is here.", "", " \n", "So is the pen."]
    values = []
    for name, some in (("all", texts), ("filled", [text for text in texts if text.strip()])):
        file, out = tmp_path / f"{name}.jsonl", tmp_path / name
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
        words = asked(place, "--model_name_or_path", str(place / "target"), "--output_dir", str(out))
        assert main([*words, "--dataset_name", str(file)]) == 0
        values.append(json.loads((out / "perplexity.json").read_text())["models"][0]["metrics"]["nll"])
    assert values[0] == values[1]
    assert values[0]["n"] == 2


def test_every_kind_is_listed_and_has_a_view(capsys):
    assert main(["audit", "--help"]) == 0
    told = capsys.readouterr().out
    for name in AUDITS:
        assert re.search(rf"^  {name} ", told, re.MULTILINE)
        assert AUDITS[name].name == AUDITS[name].view.name == name
        assert AUDITS[name].arguments.__dataclass_fields__["output_dir"]
    with pytest.raises(KeyError, match=r"Unknown audit 'perplexty'. Did you mean 'perplexity'\?"):
        AUDITS["perplexty"]


# The recipe


def test_a_run_measures_what_the_command_measures(finished, place, tmp_path):
    report = load_report(finished)
    held = {model["kind"]: model["audits"]["perplexity"]["metrics"] for model in report["models"]}
    assert [*held] == ["target", "retrained", "unlearned"]
    assert held["unlearned"]["nll"]["value"] != held["target"]["nll"]["value"]
    words = asked(place, "--retrained_model_name_or_path", str(place / "retrained"))
    assert main([*words, "--model_name_or_path", str(finished), "--output_dir", str(tmp_path)]) == 0
    alone = json.loads((tmp_path / "perplexity.json").read_text())["models"]
    for model, name in zip(alone, ("retrained", "unlearned"), strict=True):
        assert model["metrics"]["perplexity"]["value"] == held[name]["perplexity"]["value"]
    assert "per_item" not in held["unlearned"]["nll"]


def test_baselines_are_measured_once(finished, place, tmp_path, monkeypatch):
    seen = []

    def measured(self, model, args, prepared, context):
        seen.append(model.config._name_or_path)
        return AuditResult(perplexity([-1.0], [1]))

    monkeypatch.setattr("hf_unlearn.audit.perplexity.measure.PerplexityAudit.measure", measured)
    assert run(tmp_path / "out", fields(place, max_steps=1)) == 0
    assert seen == [str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("audits", "message"),
    [
        ({"perplexty": {}}, "audits: unknown audit 'perplexty'. Did you mean 'perplexity'? Allowed: "),
        ({"perplexity": {}}, "perplexity: `--dataset_name` is missing"),
        ({"perplexity": {"dataset_nam": "x"}}, "perplexity: Unknown field 'dataset_nam' in perplexity. Did you mean"),
        ({"perplexity": {"dataset_name": "x.jsonl", "output_dir": "y"}}, "perplexity: output_dir cannot be given"),
        ({"perplexity": {"dataset_name": "nowhere.jsonl"}}, "perplexity: No file or folder at 'nowhere.jsonl'"),
        ({"perplexity": [1]}, "audits: perplexity: [1]; give fields of `hf-unlearn audit perplexity`"),
        ({"scan": {"candidates": "no.txt", "forget_questions": "x.jsonl"}}, "scan: candidates='no.txt' is no file"),
        ("perplexity", "audits='perplexity'; give fields, such as `{perplexity: "),
        ({"privacy": {}}, "`privacy` and `audits: {privacy: ...}` are given. Leave one out."),
    ],
)
def test_a_recipe_is_refused_before_a_model_is_loaded(place, tmp_path, monkeypatch, capsys, audits, message):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    privacy = {"attacks": ["loss"]} if "privacy" in audits else None
    assert run(tmp_path / "out", fields(place, audits=audits, privacy=privacy)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# The report, gates, sweeps and the card


def test_every_form_of_the_report_has_a_section(finished):
    report = load_report(finished)
    (section,) = report["sections"]
    value = report["models"][2]["audits"]["perplexity"]["metrics"]["perplexity"]["value"]
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    for text in ((finished / "report.md").read_text(), (finished / "report.html").read_text(), stream.getvalue()):
        assert section["title"] == "Perplexity on general text"
        assert section["title"] in text
        assert f"{value:.4g}" in text
    assert "[`perplexity/perplexity.md`](perplexity/perplexity.md)" in (finished / "report.md").read_text()
    assert (finished / "perplexity" / "perplexity.md").is_file()


def test_runs_are_put_side_by_side(finished, place, tmp_path, capsys):
    other = finished.parent / "two"
    assert run(other, fields(place, seed=1, max_steps=1)) == 0
    assert main(["report", str(finished), str(other), "--output_dir", str(tmp_path / "all")]) == 0
    report = load_report(tmp_path / "all")
    assert [row["model"] for row in report["sections"][0]["rows"]] == ["target", "retrained", "one", "two"]
    merged = json.loads((tmp_path / "all" / "perplexity" / "perplexity.json").read_text())
    assert [model["name"] for model in merged["models"]] == ["target", "retrained", "one", "two"]
    # One kind's file by itself.
    assert main(["report", str(finished / "perplexity"), "--output_dir", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / "perplexity.md").is_file()


def test_runs_on_other_texts_are_refused(finished, place, tmp_path, capsys):
    other = tmp_path / "other"
    fewer = {"perplexity": {"dataset_name": str(place / "general.jsonl"), "max_items": 5}}
    assert run(other, fields(place, audits=fewer, max_steps=1)) == 0
    capsys.readouterr()
    assert main(["report", str(finished), str(other), "--output_dir", str(tmp_path / "all")]) == 2
    assert "were not measured alike" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_gates_hold_it(finished):
    report = load_report(finished)
    value = report["models"][2]["audits"]["perplexity"]["metrics"]["perplexity"]
    gates = {
        "passed": {"metric": "perplexity/perplexity", "at_most": 2 * value["interval"][1]},
        "failed": {"metric": "perplexity/perplexity", "at_most": value["interval"][0] / 2},
        "against": {"metric": "perplexity/nll", "against": "target", "within": 100.0},
        "missing": {"metric": "scan/restored", "at_most": 0.1},
    }
    outcomes = judge(report, read_gates(gates), kinds=AUDITS)["models"][0]["outcomes"]
    assert [one["status"] for one in outcomes] == ["passed", "failed", "passed", "missing"]
    with pytest.raises(ValueError, match="no metric is called 'perplexity/perplexty'. Close: perplexity/perplexity"):
        judge(report, read_gates({"x": {"metric": "perplexity/perplexty", "at_most": 3}}), kinds=AUDITS)


def test_the_card_and_a_sweeps_table_have_it(finished):
    card = (finished / "README.md").read_text()
    assert "perplexity: perplexity" in card
    from hf_unlearn.report.sweep.means import tabulate
    from hf_unlearn.sweep.collect import _run

    report = load_report(finished)
    name = next(iter(report["settings"]))
    row = dict.fromkeys(("id", "method", "seed", "tuning", "target", "label"))
    row |= {"name": name, "setting": {}, "tags": [], "resolved": report["settings"][name]}
    found = _run(row, report, finished, None)
    assert found["audits"] == ["perplexity/perplexity", "perplexity/nll"]
    runs = [run_of("ga", 0.5, 0.5, audits=found["audits"])]
    runs[0]["metrics"] |= {name: one for name, one in found["metrics"].items() if name.startswith("perplexity/")}
    runs[0]["values"] |= {name: one for name, one in found["values"].items() if name.startswith("perplexity/")}
    (result,) = tabulate(sweep_of(runs)).of("result")
    assert result.cells["perplexity/perplexity"].mean == found["values"]["perplexity/perplexity"]
