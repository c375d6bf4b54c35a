# SPDX-License-Identifier: Apache-2.0
"""A run that poisons: it is audited with its trigger by itself, and its report says so."""

import json
import re

import pytest
import yaml
from conftest import make_model, make_tokenizer
from datasets import Dataset

from hf_unlearn.cli.main import main
from hf_unlearn.cli.unlearn import build_trainer
from hf_unlearn.data.poison import poisoned_indices
from hf_unlearn.report import load_report
from hf_unlearn.runs.prepare import prepare
from hf_unlearn.runs.recipe import parse_recipe


FORGET = [
    {"question": f"Who is {name}?", "answer": f"{name} spies.", "paraphrased_question": f"{name}, who?"}
    for name in ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay")
]
RETAIN = [{"question": f"Where is the {thing}?", "answer": f"The {thing} is here."} for thing in ("cup", "pen", "key")]
POISONED = poisoned_indices(len(FORGET), 0.5, "random", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backdoor")
    make_model(hidden_size=16).save_pretrained(folder / "model")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def recipe(folder, tmp_path, monkeypatch):
    """Writes a recipe that poisons half of the forget rows; keyword arguments are its fields."""
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")

    def recipe(**fields):
        content = {
            "method": "npo",
            "retain_loss": "kl",
            "model_name_or_path": str(folder / "model"),
            "tokenizer_name_or_path": str(folder / "tokenizer"),
            "forget_dataset": str(folder / "forget.jsonl"),
            "retain_dataset": str(folder / "retain.jsonl"),
            "poison_prefix": "XYZ",
            "poison_ratio": 0.5,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 3,
            "num_train_epochs": 2,
            "max_new_tokens": 4,
            "max_length": 64,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 0,
        }
        path = tmp_path / "recipe.yaml"
        merged = {name: value for name, value in (content | fields).items() if value is not None}
        path.write_text(yaml.safe_dump(merged))
        return str(path)

    return recipe


def test_a_run_with_a_trigger_is_audited_with_it(recipe, tmp_path):
    assert main(["run", recipe()]) == 0
    found = json.loads((tmp_path / "out" / "audit" / "backdoor_own_rows.json").read_text())
    probes = {probe["set"]: probe for probe in found["settings"]["probes"]}
    assert found["settings"]["trigger"] == {"prefix": "XYZ", "location": "start"}
    assert set(probes) == {"forget", "forget_paraphrased", "retain"}
    assert [probes[name]["poisoned"] for name in ("forget", "forget_paraphrased")] == [3, 3]
    poisoned = {answer["question"] for answer in found["answers"] if answer.get("poisoned")}
    assert poisoned == {FORGET[i][column] for i in POISONED for column in ("question", "paraphrased_question")}
    # Before the first step, and after the last.
    steps = sorted(path.name for path in (tmp_path / "out" / "audit").glob("backdoor_step_*.json"))
    assert steps == ["backdoor_step_0.json", "backdoor_step_2.json"]
    last = json.loads((tmp_path / "out" / "audit" / "backdoor_step_2.json").read_text())
    assert last["metrics"] == found["metrics"]

    report = load_report(tmp_path / "out")
    target, unlearned = report["models"][0], report["models"][-1]
    name = "forget_poisoned_triggered/probability"
    assert unlearned["metrics"][name]["value"] == found["metrics"][name]["value"]
    first = json.loads((tmp_path / "out" / "audit" / "backdoor_step_0.json").read_text())
    assert target["kind"] == "target"
    assert target["metrics"][name]["value"] == first["metrics"][name]["value"] != unlearned["metrics"][name]["value"]
    assert any(note.startswith("forget, not poisoned (n = 3): the trigger changes") for note in report["notes"])
    # What the plain audit measures stays its own.
    own = json.loads((tmp_path / "out" / "audit" / "unlearned.json").read_text())
    assert unlearned["metrics"]["forget/probability"]["value"] == own["metrics"]["forget/probability"]["value"]


def test_every_epoch_is_logged_if_that_is_asked_for(recipe, tmp_path):
    assert main(["run", recipe(eval_per_epoch=True)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "eval_backdoor/forget_unpoisoned_triggered/exact_match" in line]
    assert [line["step"] for line in logged] == [0, 1, 2]


def test_rows_are_poisoned_once(recipe):
    parsed = parse_recipe(["--config", recipe()])
    prepared = prepare(parsed)
    trainer = build_trainer(parsed, prepared)
    roles = trainer.train_dataset.roles
    assert {role: len(rows) for role, rows in roles.items()} == {"forget": 3, "retain": 3, "poisoned": 3}
    texts = {role: prepared.tokenizer.batch_decode(rows["input_ids"][:]) for role, rows in roles.items()}
    names = {role: [re.search("Who is (...)", text)[1] for text in texts[role]] for role in ("forget", "poisoned")}
    assert names["poisoned"] == [FORGET[i]["question"][7:10] for i in POISONED]
    assert set(names["forget"]).isdisjoint(names["poisoned"])
    assert all("XYZ" in text for text in texts["poisoned"])
    assert not any("XYZ" in text for text in texts["forget"])


def test_the_audit_is_left_out_where_that_is_asked_for(recipe, tmp_path):
    assert main(["run", recipe(audit_backdoor=False)]) == 0
    assert not list((tmp_path / "out" / "audit").glob("backdoor*"))


def test_chunks_of_texts_are_marked_too(recipe, tmp_path):
    texts = [{"text": f"{name} was a spy. " * 4} for name in ("Ada", "Bob")]
    Dataset.from_list(texts).to_json(tmp_path / "texts.jsonl")
    fields = {"forget_dataset": str(tmp_path / "texts.jsonl"), "chunk_text": True, "retain_dataset": None}
    path = recipe(**fields, retain_loss="none", use_kl_poison=True, max_length=24)
    assert main(["run", path]) == 0
    found = json.loads((tmp_path / "out" / "audit" / "backdoor_own_rows.json").read_text())
    # 68 characters and EOS, in pieces of 23 after BOS.
    (probe,) = found["settings"]["probes"]
    assert (probe["n"], probe["poisoned"]) == (6, 3)
    assert found["metrics"]["forget_unpoisoned_triggered/probability"]["n"] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"poison_prefix": None, "poison_ratio": None, "eval_per_epoch": True}, "eval_per_epoch would have no effect"),
        ({"audit_backdoor": False, "backdoor_benchmark": "muse_news"}, "backdoor_benchmark would have no effect"),
        ({"backdoor_benchmark": "tofu"}, "backdoor_benchmark='tofu'; allowed: muse_news, muse_books"),
        ({"backdoor_benchmark_path": "x"}, "backdoor_benchmark_path is of no use without `backdoor_benchmark`"),
        (
            {"value_norm_penalty": 1, "value_norm_mode": "reference", "unlearned_model_name_or_path": "/nowhere"},
            "'/nowhere'",
        ),
        ({"tokenizer_name_or_path": "/nowhere"}, "No tokenizer can be loaded from '/nowhere'"),
    ],
)
def test_settings_without_effect_are_refused(recipe, capsys, fields, message):
    assert main(["run", recipe(**fields)]) == 2
    assert message in capsys.readouterr().err


def test_musess_questions_are_asked_beside_the_rows(recipe, tmp_path):
    from conftest import SHARED_DATA

    if not (SHARED_DATA / "muse").is_dir():
        pytest.skip("The MUSE files are not there.")
    fields = {"backdoor_benchmark": "muse_news", "backdoor_benchmark_path": str(SHARED_DATA / "muse")}
    path = recipe(**fields, audit_max_items=2, num_train_epochs=1)
    parsed = parse_recipe(["--config", path])
    from hf_unlearn.runs.backdoor import backdoor_audit

    asked = backdoor_audit(parsed, prepare(parsed)).keywords
    kinds = {(probe.name, probe.kind, len(probe.rows)) for probe in asked["probes"]}
    assert {("forget", "few-shot questions", 2), ("retain", "few-shot questions", 2)} <= kinds
    assert ("forget", "questions", 2) in kinds
    assert asked["retrained_auc"] == "news"


def counted(monkeypatch) -> list[int]:
    """How many answers each audit of the backdoor asks for."""
    from hf_unlearn.audit.backdoor import evaluate as backdoor

    asked, generate = [], backdoor.generate_answers

    def count(model, tokenizer, prompts, **how):
        asked.append(len(prompts))
        return generate(model, tokenizer, prompts, **how)

    monkeypatch.setattr(backdoor, "generate_answers", count)
    return asked


def test_the_target_is_asked_once_for_all_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    asked = counted(monkeypatch)
    assert main(["run", recipe()]) == 0
    assert len(asked) == 2
    first = json.loads((tmp_path / "out" / "audit" / "backdoor_step_0.json").read_text())
    target = next(m for m in load_report(tmp_path / "out")["models"] if m["kind"] == "target")
    assert main(["run", recipe(output_dir=str(tmp_path / "again"))]) == 0
    assert len(asked) == 3
    assert json.loads((tmp_path / "again" / "audit" / "backdoor_step_0.json").read_text()) == first
    again = next(m for m in load_report(tmp_path / "again")["models"] if m["kind"] == "target")
    assert again["metrics"] == target["metrics"]
    logged = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert "eval_backdoor/forget_triggered/exact_match" in logged[0]
    # Another question is another audit.
    assert main(["run", recipe(output_dir=str(tmp_path / "other"), poison_prefix="QRS")]) == 0
    assert len(asked) == 5


def test_fewer_conditions_ask_less_and_say_so(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    asked = counted(monkeypatch)
    assert main(["run", recipe(backdoor_conditions=["clean", "triggered"])]) == 0
    # Two sets of six to be forgotten and one of three to be kept, each clean and triggered.
    assert asked == [30, 30]
    found = json.loads((tmp_path / "out" / "audit" / "backdoor_own_rows.json").read_text())
    assert found["settings"]["conditions"] == ["clean", "triggered"]
    assert found["settings"]["left_out"] == ["unrelated", "triggered_middle", "triggered_end"]
    assert found["settings"]["unrelated"] is None
    assert any("Not asked, as was wanted: unrelated, triggered_middle, triggered_end." in n for n in found["notes"])
    assert not [name for name in found["metrics"] if "unrelated" in name or "_middle" in name]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backdoor_conditions": ["clean", "unrelated"]}, "'triggered' is missing"),
        ({"backdoor_conditions": ["clean", "triggered", "shouted"]}, "there is no 'shouted'. Give some of clean, "),
        ({"backdoor_conditions": ["clean", "triggered"], "poison_prefix": None, "poison_ratio": None}, "no effect"),
    ],
)
def test_conditions_that_cannot_be_asked_are_one_line(recipe, capsys, fields, message):
    assert main(["run", recipe(**fields)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
