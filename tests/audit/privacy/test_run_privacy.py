# SPDX-License-Identifier: Apache-2.0
"""Membership inference as part of a run: asked for in the recipe, checked before anything, shown in the report."""

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import make_model, make_tokenizer
from rich.console import Console

from hf_unlearn import UnlearnTrainer
from hf_unlearn.cli.main import main
from hf_unlearn.cli.sweep import _add_privacy, resolve
from hf_unlearn.report import load_report, print_report, write_report
from hf_unlearn.report.markdown import render_markdown
from hf_unlearn.report.page import render_page
from hf_unlearn.report.privacy.write import load_privacy_report
from hf_unlearn.report.verdict import verdicts
from hf_unlearn.sweep.expand import expand
from hf_unlearn.sweep.spec import read_spec


THINGS = ("cup", "pen", "key", "hat", "bag", "map", "jar", "box", "fan", "pot", "cap", "rug")
ASKED = {"attacks": ["loss", "entropy"], "fprs": [0.01, 0.1]}


def rows(kind: str) -> list[dict]:
    return [
        {"question": f"Where is {kind} {thing} {i}?", "answer": f"In {thing} {i}."} for thing in THINGS for i in (1, 2)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Models and rows on disk: 24 rows a set, so that 12 non-members set thresholds: enough for 0.1, not for 0.01."""
    folder = tmp_path_factory.mktemp("place")
    for seed, name in enumerate(("target", "retrained")):
        make_model(seed=seed, hidden_size=16).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for kind in ("forget", "retain", "unseen"):
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures and page, which take longer than all else here."""
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")
    monkeypatch.setattr("hf_unlearn.report.privacy.figures.save_privacy_plots", lambda report, folder: {})


def fields(place: Path, **more) -> dict:
    return {
        "method": "ga",
        "retain_loss": "nll",
        "model_name_or_path": str(place / "target"),
        "retrained_model_name_or_path": str(place / "retrained"),
        "forget_dataset": str(place / "forget.jsonl"),
        "retain_dataset": str(place / "retain.jsonl"),
        "privacy": {**ASKED, "nonmember_dataset": str(place / "unseen.jsonl")},
        "max_new_tokens": 4,
        "audit_max_items": 4,
        "max_steps": 1,
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


def worst(model: dict) -> dict:
    return {
        name: {key: value for key, value in metric.items() if key != "per_item"}
        for name, metric in model["metrics"].items()
        if name.startswith("worst/")
    }


# What a run does


def test_a_run_finds_what_the_command_finds(finished, place, tmp_path):
    privacy, report = load_privacy_report(finished / "privacy"), load_report(finished)
    assert [(m["name"], m["kind"]) for m in privacy["models"]] == [
        ("retrained", "retrained"), ("target", "attacked"), ("one", "attacked"),
    ]  # fmt: skip
    assert {path.name for path in (finished / "privacy" / "plots").glob("*.png")} == {
        "privacy_roc.png", "privacy_tpr.png", "privacy_scores.png",
    }  # fmt: skip
    words = ["--models", str(place / "target"), str(finished), "--forget_dataset", str(place / "forget.jsonl")]
    words += ["--retain_dataset", str(place / "retain.jsonl"), "--nonmember_dataset", str(place / "unseen.jsonl")]
    words += ["--retrained_model_name_or_path", str(place / "retrained"), "--attacks", "loss", "entropy"]
    assert main(["audit", "privacy", *words, "--fprs", "0.01", "0.1", "--output_dir", str(tmp_path)]) == 0
    alone = {model["path"]: worst(model) for model in load_privacy_report(tmp_path)["models"]}
    assert {model["path"]: model["privacy"]["metrics"] for model in report["models"]} == alone
    # Differences to the retrained model are made here too.
    assert "loss/auc/vs_retrained" in privacy["models"][2]["metrics"]


def test_the_report_shows_a_row_a_model(finished):
    report = load_report(finished)
    metric = report["models"][2]["privacy"]["metrics"]["worst/tpr@1e-1"]
    found = f"{100 * metric['value']:.1f}"
    details = metric["details"]
    told = [
        "TPR at 1 % FPR, %", "TPR at 10 % FPR, %", "unresolved", "has 12 of 99 rows", found,
        f"achieved FPR {100 * details['achieved_fpr']:.1f}", f"chance {100 * details['chance']:.1f}",
        details["attack"].split("/")[0],
    ]  # fmt: skip
    markdown = (finished / "report.md").read_text()
    page = re.sub(r"\s+", " ", (finished / "report.html").read_text())
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    for text in (markdown, page, stream.getvalue()):
        assert "Who can tell the forget rows?" in text
        for words in told:
            assert words in text, words
    table = markdown.split("## Who can tell")[1].split("\n## ")[0]
    names = [
        line.split("|")[1].split()[1] for line in table.splitlines() if line.startswith("| ") and "achieved" in line
    ]
    assert names == ["target", "retrained", "one"]
    assert "[`privacy/privacy.md`](privacy/privacy.md)" in table


def test_a_report_of_an_older_version_shows_the_same(finished, tmp_path):
    report = load_report(finished)
    (tmp_path / "report.json").write_text(json.dumps({k: v for k, v in report.items() if k != "sections"}))
    old = load_report(tmp_path)

    def shown(report: dict) -> tuple[str, str, str]:
        stream = io.StringIO()
        print_report(report, Console(file=stream, width=140))
        return stream.getvalue(), render_markdown(report, {}, tmp_path), render_page(report)

    assert "TPR at 10 % FPR" in shown(old)[0]
    assert shown(old) == shown(report)


def test_a_run_that_asks_for_nothing_is_not_attacked(place, tmp_path, undrawn):
    assert run(tmp_path / "out", fields(place), "--privacy", "null") == 0
    assert not (tmp_path / "out" / "privacy").exists()
    assert all("privacy" not in model for model in load_report(tmp_path / "out")["models"])
    assert "Who can tell" not in (tmp_path / "out" / "report.md").read_text()


def test_the_command_line_asks_as_a_recipe_does(place, tmp_path, undrawn):
    asked = json.dumps({"attacks": ["loss"], "fprs": [0.1], "nonmember_dataset": str(place / "unseen.jsonl")})
    content = fields(place, retrained_model_name_or_path=None)
    assert run(tmp_path / "out", content, "--privacy", asked) == 0
    target, unlearned = load_report(tmp_path / "out")["models"]
    assert list(unlearned["privacy"]["metrics"]) == list(target["privacy"]["metrics"]) == ["worst/tpr@1e-1"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attacks": ["los"]}, "privacy: attacks=['los']: there is no 'los'. Give each once, of: loss, confidence"),
        ({"attacks": ["loss", "loss"]}, "privacy: attacks=['loss', 'loss']: one is named twice."),
        ({"attacks": ["reference"]}, "privacy: The attack 'reference' needs `--reference_model_name_or_path`"),
        ({"attacks": ["lira"]}, "privacy: The attack 'lira' needs `--shadow_model_name_or_path`"),
        ({"fprs": [0.0, 0.1]}, "privacy: fprs=[0.0, 0.1]; give at least one false positive rate"),
        ({"fpr": [0.1]}, "privacy: Unknown field 'fpr' in privacy. Did you mean 'fprs'?"),
        ({"nonmember_dataset": None}, "privacy: No non-members are named. Give `--nonmember_dataset`"),
        ({"nonmember_dataset": "nowhere.jsonl"}, "privacy: "),
        ({"models": ["x"]}, "privacy: models cannot be given"),
        ("loss", "privacy='loss'; give fields, such as `{attacks: [loss], fprs: [0.01]}`"),
    ],
)
def test_what_cannot_work_is_told_before_a_model_is_loaded(place, tmp_path, monkeypatch, capsys, asked, message):
    monkeypatch.setattr(
        "hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("a model was loaded")
    )
    content = fields(place)
    content["privacy"] = {**content["privacy"], **asked} if isinstance(asked, dict) else asked
    assert run(tmp_path / "out", content) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_needs_the_audits_beside_which_it_is_shown(place, tmp_path, capsys):
    assert run(tmp_path / "out", fields(place, audit=False)) == 2
    assert "privacy needs `audit: true`" in capsys.readouterr().err


def test_members_among_the_unseen_rows_are_told_before_training(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(UnlearnTrainer, "train", lambda *a, **k: pytest.fail("training began"))
    content = fields(place)
    content["privacy"]["nonmember_dataset"] = str(place / "retain.jsonl")
    assert run(tmp_path / "out", content) == 2
    assert "24 of 24 rows of nonmember_data are retain rows too" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_earlier_runs_audit_does_not_stay(place, tmp_path, undrawn):
    content = fields(place)
    assert run(tmp_path / "out", content) == 0
    assert (tmp_path / "out" / "privacy").is_dir()
    assert run(tmp_path / "out", {**content, "privacy": None}, "--overwrite_output", "true") == 0
    assert not (tmp_path / "out" / "privacy").exists()


# Sweeps attack in a step of their own


@pytest.fixture
def expanded(place, tmp_path, monkeypatch):
    def expanded(recipe: dict | None, **content) -> list:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields(place, privacy=recipe)))
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"recipes": ["recipe.yaml"], **content}))
        spec = read_spec(path)
        runs = expand(spec, tmp_path / "out", resolve)
        _add_privacy(spec, runs)
        return runs

    return expanded


def test_a_sweep_takes_a_recipes_privacy_over(expanded, place):
    unseen = str(place / "unseen.jsonl")
    (plain,) = expanded(None)
    (own,) = expanded({**ASKED, "nonmember_dataset": unseen})
    (swept,) = expanded({**ASKED, "nonmember_dataset": unseen}, privacy={"fprs": [0.2], "nonmember_dataset": unseen})
    (off,) = expanded({**ASKED, "nonmember_dataset": unseen}, fields={"privacy": None})
    assert plain.privacy is None is off.privacy
    assert (own.privacy["attacks"], own.privacy["fprs"]) == (ASKED["attacks"], ASKED["fprs"])
    assert own.privacy["models"] == [str(place / "target"), str(own.folder)]
    # All of it is the sweep's, not half of each.
    assert (swept.privacy.get("attacks"), swept.privacy["fprs"]) == (None, [0.2])
    for one in (own, swept, off):
        # The run itself attacks nothing, and is the same run whatever is asked of it afterwards.
        assert "privacy" not in one.content
        assert one.id == plain.id


def test_a_sweep_refuses_what_the_audit_would(expanded, place):
    with pytest.raises(ValueError, match=r"sweep.yaml: privacy: attacks=\['los'\]"):
        expanded({"attacks": ["los"], "nonmember_dataset": str(place / "unseen.jsonl")})


# Reports of what is there


@pytest.fixture(scope="module")
def two(finished, place) -> Path:
    """A folder of two runs; the second was attacked by a sweep, which leaves its report as it was."""
    folder = finished.parent / "two"
    content = fields(place, seed=1, privacy=None)
    assert run(folder, content) == 0
    words = ["--models", str(place / "target"), str(folder), "--forget_dataset", str(place / "forget.jsonl")]
    words += ["--retain_dataset", str(place / "retain.jsonl"), "--nonmember_dataset", str(place / "unseen.jsonl")]
    words += ["--retrained_model_name_or_path", str(place / "retrained"), "--attacks", "loss", "entropy"]
    assert main(["audit", "privacy", *words, "--fprs", "0.1", "--output_dir", str(folder / "privacy")]) == 0
    return finished.parent


def test_a_folder_of_runs_is_as_if_they_were_named(two, tmp_path, capsys, request):
    assert main(["report", str(two), "--output_dir", str(tmp_path / "all")]) == 0
    assert f"{two} holds 2 runs: one, two." in capsys.readouterr().out
    request.getfixturevalue("undrawn")
    assert (
        main(["report", str(two / "one"), str(two / "two" / "report.json"), "--output_dir", str(tmp_path / "b")]) == 0
    )
    found = load_report(tmp_path / "all")["models"]
    assert found == load_report(tmp_path / "b")["models"]
    assert [model["name"] for model in found] == ["target", "retrained", "one", "two"]
    assert [list(model["privacy"]["metrics"]) for model in found[2:]] == [
        ["worst/tpr@1e-2", "worst/tpr@1e-1"], ["worst/tpr@1e-1"],
    ]  # fmt: skip
    merged = load_privacy_report(tmp_path / "all" / "privacy")
    assert [model["name"] for model in merged["models"]] == ["target", "retrained", "one", "two"]
    assert (tmp_path / "all" / "privacy" / "plots" / "privacy_tpr.png").is_file()
    assert "–" in (tmp_path / "all" / "report.md").read_text().split("Who can tell")[1].split("## ")[0]


def test_a_comparison_is_no_run_of_its_own_folder(two, capsys, undrawn):
    for _ in range(2):
        assert main(["report", str(two), "--output_dir", str(two / "all")]) == 0
        assert "holds 2 runs: one, two." in capsys.readouterr().out


def test_a_folder_without_runs_is_told(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"No report in {tmp_path} or in a folder there" in capsys.readouterr().err


def test_an_audits_tables_and_plots_are_drawn_again(finished, tmp_path):
    first = finished / "privacy"
    assert main(["report", str(first / "privacy.json"), "--output_dir", str(tmp_path / "other")]) == 0
    # Without a place of its own, it is drawn where it lies.
    (tmp_path / "privacy").mkdir()
    (tmp_path / "privacy" / "privacy.json").write_text((first / "privacy.json").read_text())
    assert main(["report", str(tmp_path / "privacy")]) == 0
    for folder in (tmp_path / "other", tmp_path / "privacy"):
        assert (folder / "privacy.md").read_text() == (first / "privacy.md").read_text()
        assert {path.name for path in (folder / "plots").iterdir()} == {p.name for p in (first / "plots").iterdir()}


def test_an_audit_beside_runs_is_refused(finished, capsys):
    assert main(["report", str(finished), str(finished / "privacy")]) == 2
    assert "is a membership-inference audit's. Name it alone" in capsys.readouterr().err


def test_runs_that_were_attacked_on_other_rows_are_refused(two, tmp_path, capsys, undrawn):
    privacy = load_privacy_report(two / "two" / "privacy")
    for model in privacy["models"]:
        model["settings"]["rows"]["nonmember"] = "other"
    report = load_report(two / "two")
    write_report(report, tmp_path / "two")
    (tmp_path / "two" / "privacy").mkdir()
    (tmp_path / "two" / "privacy" / "privacy.json").write_text(json.dumps(privacy))
    assert main(["report", str(two / "one"), str(tmp_path / "two"), "--output_dir", str(tmp_path / "all")]) == 2
    assert "attacked on different rows" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


# In words


@pytest.mark.parametrize(
    ("mine", "sign", "words"),
    [
        ((0.9, [0.7, 0.98]), "✗", "more than in retrained, 10.0 % [2.0, 30.0]"),
        ((0.2, [0.05, 0.4]), "✓", "no difference seen"),
        ((None, None), None, None),
    ],
)
def test_attacks_are_among_the_checks(finished, mine, sign, words):
    report = load_report(finished)
    _, retrained, unlearned = report["models"]
    for model, (value, interval) in ((retrained, (0.1, [0.02, 0.3])), (unlearned, mine)):
        model["privacy"]["metrics"]["worst/tpr@1e-1"] |= {"value": value, "interval": interval}
    (verdict,) = verdicts(report)
    found = [finding for finding in verdict.more if finding.label == "Attacks: TPR at 10 % FPR"]
    if sign is None:
        assert found == []
    else:
        assert found[0].sign == sign
        assert found[0].word.startswith(words)
