# SPDX-License-Identifier: Apache-2.0
"""The main job, from recipe to report: on the real files of TOFU, on rows of one's own, resumed, and on processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, lora, make_model, make_tokenizer
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn.audit import Audit
from hf_unlearn.audit.arguments import AuditArguments
from hf_unlearn.cache import cache_root
from hf_unlearn.cli.main import main
from hf_unlearn.data import benchmarks
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sets import Sets
from hf_unlearn.report import load_report
from hf_unlearn.runs.prepare import prepare
from hf_unlearn.runs.recipe import parse_recipe
from hf_unlearn.runs.suite_audits import AuditCache


RECIPE = str(ROOT / "recipes" / "tofu" / "llama-3.2-1b" / "npo_klr.yaml")
NAMES = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay")
THINGS = ("cup", "pen", "key", "hat", "bag", "map", "jar", "box")
FORGET = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in NAMES]
RETAIN = [{"question": f"Where is the {thing}?", "answer": f"The {thing} is here."} for thing in THINGS]
WRITTEN = {
    "config.json", "model.safetensors", "tokenizer.json", "trainer_state.json", "metrics.jsonl", "recipe.yaml",
    "README.md", "report.json", "report.md", "report.html", "plots", "audit",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A model to unlearn from and one that stands for the retrained one, on disk."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("target", "retrained")):
        make_model(seed=seed, hidden_size=16).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("target", "retrained")}


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures and page, which take longer than these runs; the run on TOFU draws them."""
    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")


def words_of(fields: dict) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def tofu_fields(models: dict, tofu_path: Path, folder: Path, **fields) -> dict:
    return {
        "model_name_or_path": models["target"],
        "retrained_model_name_or_path": models["retrained"],
        "benchmark_path": tofu_path,
        "forget_split": "forget01",
        "max_steps": 2,
        "bf16": "false",
        "max_new_tokens": 8,
        "audit_max_items": 8,
        "use_chat_template": "false",
        "disable_tqdm": "true",
        "output_dir": folder,
        **fields,
    }


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def audited_steps(folder: Path) -> dict[int, float]:
    """Step to the audited probability of the forget answers."""
    name = "eval_forget/probability"
    return {entry["step"]: entry[name] for entry in entries(folder / "metrics.jsonl") if name in entry}


def models_of(folder: Path) -> dict[str, dict]:
    return {model["name"]: model for model in load_report(folder)["models"]}


def notes_of(folder: Path) -> str:
    return "\n".join(load_report(folder)["notes"])


def same_weights(left, right) -> bool:
    states = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (left, right)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# On the files of TOFU


@pytest.fixture(scope="module")
def tofu_run(models, tofu_path, tmp_path_factory) -> Path:
    """The recipe of a shipped file on forget01 and retain99, two steps, in this process."""
    folder = tmp_path_factory.mktemp("tofu") / "npo_klr"
    assert main(["run", RECIPE, *words_of(tofu_fields(models, tofu_path, folder))]) == 0
    return folder


def test_a_run_leaves_everything_behind(tofu_run):
    assert {path.name for path in tofu_run.iterdir()} >= WRITTEN
    assert not [path.name for path in tofu_run.iterdir() if path.suffix == ".bin" and path.name != "training_args.bin"]
    assert {path.name for path in (tofu_run / "audit").iterdir()} == {
        "target.json",
        "retrained.json",
        "unlearned.json",
    }
    assert "npo_klr" in (tofu_run / "report.md").read_text()
    assert "<html" in (tofu_run / "report.html").read_text()
    assert list((tofu_run / "plots").glob("*.png"))


def test_the_checkpoint_loads_with_plain_transformers(tofu_run, models):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tofu_run), AutoTokenizer.from_pretrained(tofu_run)
    assert not same_weights(tofu_run, models["target"])
    prompt = tokenizer("Question: Who?\nAnswer:", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.chat_template == make_tokenizer().chat_template


def test_the_report_holds_the_three_models(tofu_run, models):
    found = models_of(tofu_run)
    assert {name: model["kind"] for name, model in found.items()} == {
        "target": "target",
        "retrained": "retrained",
        "npo_klr": "unlearned",
    }
    assert (found["target"]["path"], found["retrained"]["path"]) == (models["target"], models["retrained"])
    assert {f"{name}/probability" for name in ("forget", "retain", "real_authors", "world_facts")} <= found["npo_klr"][
        "metrics"
    ].keys()
    for name in ("target", "npo_klr"):
        quality = found[name]["metrics"]["forget_quality"]
        assert 0 <= quality["value"] <= 1
        assert found[name]["metrics"]["forget/probability"]["n"] == 8
    train = found["npo_klr"]["train"]
    assert (train["steps"], train["processes"]) == (2, 1)
    assert [point["step"] for point in train["curve"]] == [1, 2]
    assert {"forget/loss", "retain/loss"} <= train["curve"][0].keys()
    # The same questions to every model.
    questions = [[(row["set"], row["question"]) for row in model["answers"]] for model in found.values()]
    assert questions[0] == questions[1] == questions[2]
    assert load_report(tofu_run)["suite"] == "tofu"


def test_the_reports_numbers_are_the_audits(tofu_run):
    for name, file in (("target", "target"), ("retrained", "retrained"), ("npo_klr", "unlearned")):
        audit = Audit.load(tofu_run / "audit" / f"{file}.json")
        assert {
            metric: entry["value"] for metric, entry in models_of(tofu_run)[name]["metrics"].items()
        } == audit.values()


def test_the_metrics_file_is_the_trainers_log(tofu_run):
    history = json.loads((tofu_run / "trainer_state.json").read_text())["log_history"]
    kept = [{k: v for k, v in entry.items() if k != "total_flos"} for entry in history]
    assert entries(tofu_run / "metrics.jsonl") == kept
    steps = [entry for entry in kept if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    for entry in steps:
        for part in ("loss", "nll", "logps"):
            assert {f"forget/{part}", f"retain/{part}"} <= entry.keys()
    # At the first step the policy is the reference: NPO is 2 ln 2 / beta, KL is nothing.
    assert steps[0]["forget/loss"] == pytest.approx(13.862943, rel=1e-5)
    assert steps[0]["retain/loss"] == pytest.approx(0, abs=1e-6)


def test_the_kept_recipe_is_the_run(tofu_run, models, tofu_path):
    kept = yaml.safe_load((tofu_run / "recipe.yaml").read_text())
    shipped = yaml.safe_load(Path(RECIPE).read_text())
    given = tofu_fields(models, tofu_path, tofu_run)
    assert {name for name in shipped if kept[name] != shipped[name]} == {
        *("model_name_or_path", "retrained_model_name_or_path", "forget_split", "bf16", "output_dir", "report_to")
    }
    assert {str(kept[name]).lower() for name in given} == {str(value).lower() for value in given.values()}
    settings = load_report(tofu_run)["settings"]["npo_klr"]
    assert settings == kept == parse_recipe(["--config", str(tofu_run / "recipe.yaml")]).resolved()


def test_the_card_tells_what_was_done(tofu_run):
    card = ModelCard.load(tofu_run / "README.md")
    assert card.data.unlearning["rows"] == {"forget": 40, "retain": 3960}
    assert card.data.unlearning["method"] == "npo"
    assert "Basil Mahfouz" not in card.content


def test_the_run_is_not_started_again_by_mistake(tofu_run, capsys):
    assert main(["run", str(tofu_run / "recipe.yaml")]) == 2
    assert "holds this run already" in capsys.readouterr().err


def test_an_evaluation_of_the_checkpoint_gives_the_numbers_of_the_run(tofu_run, models, tofu_path, tmp_path, capsys):
    recipe = yaml.safe_load((tofu_run / "recipe.yaml").read_text())
    fields = {
        "model_name_or_path": tofu_run,
        "retrained_model_name_or_path": models["retrained"],
        "benchmark": "tofu",
        "benchmark_path": tofu_path,
        "forget_split": "forget01",
        "use_chat_template": "false",
        "max_new_tokens": 8,
        "audit_max_items": 8,
        "system_prompt": recipe["system_prompt"],
        "chat_template_kwargs": json.dumps(recipe["chat_template_kwargs"]),
        "attn_implementation": "sdpa",
        "output_dir": tmp_path,
    }
    assert main(["eval", *words_of(fields)]) == 0
    own = Audit.load(tofu_run / "audit" / "unlearned.json")
    again = Audit.load(tmp_path / "audit" / "npo_klr.json")
    assert again.to_dict() == own.to_dict()
    assert models_of(tmp_path)["npo_klr"]["metrics"] == models_of(tofu_run)["npo_klr"]["metrics"]
    assert set(models_of(tmp_path)) == {"retrained", "npo_klr"}
    assert str(tmp_path / "report.html") in capsys.readouterr().out


def test_two_runs_make_one_report(tofu_run, models, tofu_path, tmp_path, undrawn, monkeypatch):
    # Other processes of the suite write into the cache that they share.
    shutil.copytree(cache_root() / "audits", tmp_path / "cache" / "audits")
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    fields = tofu_fields(models, tofu_path, tmp_path / "ga", max_steps=1)
    # The audits of target and retrained model are known from the first run: no model but the trained one is loaded.
    before = sorted((cache_root() / "audits").iterdir())
    assert main(["run", str(ROOT / "recipes" / "tofu" / "llama-3.2-1b" / "ga.yaml"), *words_of(fields)]) == 0
    assert sorted((cache_root() / "audits").iterdir()) == before
    assert main(["report", str(tofu_run), str(tmp_path / "ga"), "--output_dir", str(tmp_path / "both")]) == 0
    assert list(models_of(tmp_path / "both")) == ["target", "retrained", "npo_klr", "ga"]
    for name in ("target", "retrained"):
        assert models_of(tmp_path / "ga")[name]["metrics"] == models_of(tofu_run)[name]["metrics"]


# On rows of one's own


@pytest.fixture
def run(tmp_path, models, undrawn):
    """Runs a small recipe on own rows, with other fields; returns the run's folder."""
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(folder="out", **fields) -> Path:
        recipe = {
            "method": "npo",
            "retain_loss": "nll",
            "model_name_or_path": models["target"],
            "forget_dataset": str(tmp_path / "forget.jsonl"),
            "retain_dataset": str(tmp_path / "retain.jsonl"),
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "max_length": 128,
            "max_new_tokens": 4,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **fields,
        }
        given = tmp_path / "given.yaml"
        given.write_text(yaml.safe_dump({name: value for name, value in recipe.items() if value is not None}))
        assert main(["run", str(given)]) == 0
        return tmp_path / folder

    return run


def test_own_rows_are_trained_on_and_audited(run, models):
    folder = run()
    found = models_of(folder)
    assert set(found) == {"target", "out"}
    assert "No retrained model was given" in notes_of(folder)
    metrics = found["out"]["metrics"]
    assert {name: metrics[f"{name}/probability"]["n"] for name in ("forget", "retain")} == {"forget": 6, "retain": 8}
    assert metrics["forget/probability"]["value"] < found["target"]["metrics"]["forget/probability"]["value"]
    assert "forget_quality" not in metrics
    assert not same_weights(folder, models["target"])


def test_a_target_is_not_held_against_itself(run, models, capsys):
    with pytest.raises(AssertionError, match="2 == 0"):
        run(retrained_model_name_or_path=models["target"])
    assert "is the audited model itself" in capsys.readouterr().err


def test_a_retrained_model_helps_rows_without_wrong_answers_too(run, models):
    folder = run(retrained_model_name_or_path=models["retrained"])
    assert set(models_of(folder)) == {"target", "retrained", "out"}
    assert "Forget quality is missing: it needs wrong answers" in notes_of(folder)


def test_no_retain_rows_are_needed_where_none_are_used(run):
    folder = run(method="ga", retain_loss="none", retain_dataset=None)
    assert {name.split("/")[0] for name in models_of(folder)["out"]["metrics"]} == {"forget"}
    assert "retain/loss" not in entries(folder / "metrics.jsonl")[0]


def test_a_run_without_audits_leaves_a_checkpoint_and_no_report(run, models):
    folder = run(audit=False)
    assert not {"report.json", "audit"} & {path.name for path in folder.iterdir()}
    assert {"README.md", "recipe.yaml", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    assert not same_weights(folder, models["target"])


def test_rows_that_no_audit_reads_can_be_trained_on(run, tmp_path):
    rows = [{"prompt": row["question"], "completion": f" {row['answer']}"} for row in FORGET]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(audit=False, forget_dataset=str(tmp_path / "rows.jsonl"))
    assert [entry["step"] for entry in entries(folder / "metrics.jsonl")][:2] == [1, 2]


def test_documents_are_cut_trained_on_and_audited(run, tmp_path):
    (tmp_path / "book").mkdir()
    for name, text in (("one", "It was a dark night. " * 10), ("two", "The end.")):
        (tmp_path / "book" / f"{name}.txt").write_text(text)
    folder = run(forget_dataset=str(tmp_path / "book"), max_length=64)
    # 210 characters in rows of 63 beside BOS, and one short document.
    assert ModelCard.load(folder / "README.md").data.unlearning["rows"] == {"forget": 5, "retain": 8}
    assert models_of(folder)["out"]["metrics"]["forget/probability"]["n"] == 5
    fields = {"model_name_or_path": folder, "forget_dataset": tmp_path / "book", "max_length": 64}
    words = words_of({**fields, "retain_dataset": tmp_path / "retain.jsonl", "max_new_tokens": 4})
    assert main(["eval", *words, "--output_dir", str(tmp_path / "eval")]) == 0
    assert models_of(tmp_path / "eval")["out"]["metrics"] == models_of(folder)["out"]["metrics"]


def test_documents_are_audited_as_the_texts_they_were(run, tmp_path):
    (tmp_path / "book.txt").write_text("It was a dark night.")
    run(forget_dataset=str(tmp_path / "book.txt"), audit=False, max_length=12, retain_loss="none", retain_dataset=None)
    given = ["--config", str(tmp_path / "given.yaml"), "--audit", "true", "--overwrite_output", "true"]
    sets = prepare(parse_recipe(given)).sets
    assert sets.audited["forget"]["text"][:] == ["It was a da", "rk night."]


def test_an_adapter_is_trained_and_evaluated_by_its_folder(run, models, tmp_path):
    folder = run(use_peft=True, lora_target_modules=["all-linear"], lora_r=4, retain_loss="kl")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "model.safetensors" not in names
    fields = {"model_name_or_path": folder, "max_new_tokens": 4, "output_dir": tmp_path / "eval"}
    rows = {f"{role}_dataset": tmp_path / f"{role}.jsonl" for role in ("forget", "retain")}
    assert main(["eval", *words_of({**fields, **rows})]) == 0
    found, again = models_of(folder)["out"]["metrics"], models_of(tmp_path / "eval")["out"]["metrics"]
    assert again == found
    assert (
        found["forget/probability"]["value"] != models_of(folder)["target"]["metrics"]["forget/probability"]["value"]
    )

    # Plain transformers finds the base model by the adapter. A full run into the same folder leaves no adapter there.
    assert AutoModelForCausalLM.from_pretrained(folder) is not None
    run(overwrite_output=True)
    assert not [path.name for path in folder.iterdir() if path.name.startswith("adapter")]
    full = AutoModelForCausalLM.from_pretrained(folder)
    assert not getattr(full, "_hf_peft_config_loaded", False)
    assert not same_weights(folder, models["target"])


def test_a_run_that_diverges_says_so(run):
    folder = run(method="ga", retain_loss="none", retain_dataset=None, max_forget_loss=4.0, max_steps=9)
    assert "Stopped at step 1: the forget rows' loss is" in notes_of(folder)
    assert models_of(folder)["out"]["train"]["steps"] == 1


@pytest.mark.parametrize("adapter", [{}, {"use_peft": True, "lora_target_modules": ["all-linear"], "lora_r": 4}])
def test_an_audit_is_of_what_is_saved_whatever_training_computes_in(run, models, tmp_path, adapter):
    # Of an adapter, accelerate's forward would be scored with and not generated with.
    folder = run(bf16=True, retain_loss="kl", retrained_model_name_or_path=models["retrained"], **adapter)
    rows = {f"{role}_dataset": tmp_path / f"{role}.jsonl" for role in ("forget", "retain")}
    fields = {"max_new_tokens": 4, "retrained_model_name_or_path": models["retrained"], **rows}
    for name, path in (("out", folder), ("target", models["target"])):
        words = words_of({**fields, "model_name_or_path": path, "output_dir": tmp_path / f"eval_{name}"})
        assert main(["eval", *words]) == 0
        found = models_of(tmp_path / f"eval_{name}")
        for one in (name, "retrained"):
            ours = {metric: entry["value"] for metric, entry in models_of(folder)[one]["metrics"].items()}
            assert {metric: entry["value"] for metric, entry in found[one]["metrics"].items()} == ours, one


@pytest.mark.parametrize("bf16", [False, True])
def test_models_are_compared_under_the_same_arithmetic(run, models, tmp_path, bf16):
    copy = tmp_path / "copy"
    shutil.copytree(models["target"], copy)
    folder = run(bf16=bf16, retrained_model_name_or_path=str(copy), max_steps=1)
    found = models_of(folder)
    for name, entry in found["retrained"]["metrics"].items():
        assert entry["value"] == found["target"]["metrics"][name]["value"], name


def test_what_an_audit_depends_on_is_audited_anew(tmp_path, models):
    def place(model=models["target"], answer="a", tokenizer=None, computed=None, qa=None, **options) -> Path:
        rows = Dataset.from_list([{"question": "q", "answer": answer}])
        run = AuditArguments(**options)
        sets = Sets(rows, None, audited={"forget": rows})
        return AuditCache(run, QAFormat(**(qa or {})), sets, tokenizer or make_tokenizer(), computed or {}).path(model)

    template, words = make_tokenizer(), make_tokenizer()
    template.chat_template = "{{ messages[0]['content'] }}"
    words.add_tokens(["word"])
    shutil.copytree(models["target"], tmp_path / "copy")
    others = [
        place(models["retrained"]),
        place(str(tmp_path / "copy")),
        place(answer="b"),
        place(tokenizer=template),
        place(tokenizer=words),
        place(computed={"dtype": "bfloat16"}),
        place(qa={"system_prompt": "Be brief."}),
        place(audit_max_items=3),
        place(max_new_tokens=5),
    ]
    assert len({place(), *others}) == 10
    assert place() == place(audit_batch_size=1)
    # Trained on, a checkpoint is another one at the same place.
    changed = place(str(tmp_path / "copy"))
    make_model(seed=5, hidden_size=16).save_pretrained(tmp_path / "copy")
    assert place(str(tmp_path / "copy")) != changed
    # So it is where its configs say something else, or an adapter's, or where the model below an adapter changed.
    seen = {place(str(tmp_path / "copy"))}
    (tmp_path / "copy" / "generation_config.json").write_text('{"do_sample": true}')
    seen.add(place(str(tmp_path / "copy")))
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "copy"), lora()).save_pretrained(tmp_path / "lora")
    seen.add(place(str(tmp_path / "lora")))
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    seen.add(place(str(tmp_path / "lora")))
    make_model(seed=6, hidden_size=16).save_pretrained(tmp_path / "copy")
    seen.add(place(str(tmp_path / "lora")))
    assert len(seen) == 5
    # What stands behind a Hub id may change.
    assert place("owner/model") is None


# Killed and resumed


def kill_at(folder: Path, step: int, logged: int) -> None:
    """Leaves of a finished run what would be there had it been killed: a checkpoint, and a log that went further."""
    lines = [
        line for line in (folder / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= logged
    ]
    shutil.rmtree(cache_root() / "audits")
    for path in folder.iterdir():
        if path.name not in ("recipe.yaml", "audit", f"checkpoint-{step}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    for name in ("unlearned.json", "retrained.json"):
        (folder / "audit" / name).unlink(missing_ok=True)


@pytest.fixture
def killed(run, tmp_path, monkeypatch):
    """A run of six steps, and a copy of it that was killed after its checkpoint at step 2."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    fields = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "retain_loss": "kl", "reference": "cache"}
    whole = run("whole", **fields)
    shutil.copytree(whole, tmp_path / "killed")
    kill_at(tmp_path / "killed", step=2, logged=3)
    return whole, tmp_path / "killed", fields


def test_a_killed_run_goes_on_as_if_it_had_not_been(run, killed):
    whole, folder, fields = killed
    saved_at = (folder / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns
    # As the README writes it; `last` is the same.
    run("killed", **fields, resume_from_checkpoint=True)
    # The first steps were not taken again.
    assert (folder / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns == saved_at
    assert (folder / "checkpoint-4").is_dir()
    assert same_weights(whole, folder)
    logs = [[entry for entry in entries(path / "metrics.jsonl") if "loss" in entry] for path in (whole, folder)]
    assert [entry["step"] for entry in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert logs[0] == logs[1]
    # The target's audit was made before the first step of the killed run, and its cache is gone.
    assert models_of(folder)["target"]["metrics"] == models_of(whole)["target"]["metrics"]
    assert models_of(folder)["killed"]["metrics"] == models_of(whole)["whole"]["metrics"]
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert "resume_from_checkpoint" not in kept


def test_a_target_that_cannot_be_audited_any_more_is_missed(run, killed):
    _, folder, fields = killed
    shutil.rmtree(folder / "audit")
    run("killed", **fields, resume_from_checkpoint="last")
    assert set(models_of(folder)) == {"killed"}
    assert "The target is missing: its audit was not kept" in notes_of(folder)


def test_an_audit_of_other_items_is_not_taken_for_the_targets(run, killed):
    _, folder, fields = killed
    run("killed", **fields, resume_from_checkpoint="last", audit_max_items=3, overwrite_output=True)
    assert set(models_of(folder)) == {"killed"}
    assert models_of(folder)["killed"]["metrics"]["forget/probability"]["n"] == 3
    assert not (folder / "audit" / "target.json").exists() or "The target is missing" in notes_of(folder)


def test_the_best_checkpoint_by_an_audit_is_what_is_saved(run):
    folder = run(
        audit_during_training=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget/probability",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
    )
    logged = audited_steps(folder)
    best = min(logged, key=logged.get)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_metric"]) == (best, logged[best])
    assert same_weights(folder, folder / f"checkpoint-{best}")
    assert models_of(folder)["out"]["metrics"]["forget/probability"]["value"] == logged[best]
    # Losses of fixed rows, not of the batches, make the curve.
    assert [point["step"] for point in models_of(folder)["out"]["train"]["curve"]] == [1, 2, 3]


# The demo


@pytest.mark.slow
def test_the_demo_shows_what_unlearning_does(tmp_path, monkeypatch, capsys):
    assert main(["demo", "--output_dir", str(tmp_path)]) == 0
    found = {name: {k: m["value"] for k, m in model["metrics"].items()} for name, model in models_of(tmp_path).items()}
    assert list(found) == ["target", "retrained", "ga", "grad_diff", "npo_klr"]
    assert found["target"]["forget/exact_match"] >= 0.95
    assert found["npo_klr"]["forget/exact_match"] <= 0.1
    assert found["npo_klr"]["retain/exact_match"] >= 0.9
    assert found["ga"]["model_utility"] < 0.5 * found["npo_klr"]["model_utility"]
    for name in ("ga", "grad_diff", "npo_klr"):
        assert {"forget/loss", "retain/loss", "step"} <= models_of(tmp_path)[name]["train"]["curve"][0].keys()
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    # A second demo builds no world.
    benchmarks._world.cache_clear()
    monkeypatch.setattr(
        "hf_unlearn.data.worlds.base.WorldBuilder._fill", lambda *args: pytest.fail("the world was built")
    )
    monkeypatch.setattr("transformers.Trainer.train", lambda *args, **kwargs: pytest.fail("something was trained"))
    with pytest.raises(pytest.fail.Exception, match="something was trained"):
        main(["demo", "--output_dir", str(tmp_path), "--recipes", "npo_klr"])


def test_a_recipe_that_the_demo_does_not_have_is_named_before_any_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_unlearn.cli.unlearn.unlearn", lambda *args, **kwargs: pytest.fail("a run was started"))
    assert main(["demo", "--output_dir", str(tmp_path), "--recipes", "npo_klr", "nope"]) == 2
    assert "nope.yaml" in capsys.readouterr().err


# On two processes


LAUNCHES = {
    "hf-unlearn": ["-m", "hf_unlearn.cli.main", "run", RECIPE, "--accelerate_config", "cpu"],
    "zero3": ["-m", "hf_unlearn.cli.main", "run", RECIPE, "--accelerate_config", "zero3", "--num_processes", "2"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")),
        *(str(ROOT / "scripts" / "unlearn.py"), "--config", RECIPE),
    ],
}


def start(words: list[str], folder: Path, fails: bool = False) -> str:
    """Runs Python with words, away from the repository; returns what it said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "HF_UNLEARN_COMMAND"))}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
        text=True,
        timeout=500,
    )
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", LAUNCHES)
def test_the_main_job_runs_on_two_processes(way, models, tofu_path, tmp_path):
    if way == "zero3":
        pytest.importorskip("deepspeed")
    folder = tmp_path / "npo_klr"
    # As many rows a step as one process has with a batch of 8.
    fields = tofu_fields(models, tofu_path, folder, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    start([*LAUNCHES[way], *words_of(fields)], tmp_path)
    assert {path.name for path in folder.iterdir()} >= WRITTEN
    found = models_of(folder)
    assert set(found) == {"target", "retrained", "npo_klr"}
    assert found["npo_klr"]["train"]["processes"] == 2
    typed = load_report(folder)["command"].split()[0]
    assert typed == (str(ROOT / "scripts" / "unlearn.py") if way == "accelerate" else "hf-unlearn")
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 16

    alone = tmp_path / "alone"
    fields = tofu_fields(models, tofu_path, alone, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert main(["run", RECIPE, *words_of(fields)]) == 0
    logs = [[entry for entry in entries(path / "metrics.jsonl") if "loss" in entry] for path in (alone, folder)]
    for one, two in zip(*logs, strict=True):
        # Two processes took 8 of the 40 forget rows together: the same share of an epoch as one.
        assert two["epoch"] == one["epoch"]
        for name in ("loss", "forget/loss", "forget/logps", "retain/logps"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    for name, metric in models_of(alone)["alone"]["metrics"].items():
        assert found["npo_klr"]["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3, abs=1e-6), name


@pytest.mark.slow
def test_a_mistake_is_told_once_on_two_processes(models, tofu_path, tmp_path):
    fields = tofu_fields(models, tofu_path, tmp_path / "out", forget_split="forget02")
    said = start([*LAUNCHES["hf-unlearn"], *words_of(fields)], tmp_path, fails=True)
    assert said.count("hf-unlearn: error: forget_split='forget02'") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_choose_the_best_checkpoint_by_an_audit(models, tofu_path, tmp_path):
    folder = tmp_path / "out"
    fields = tofu_fields(
        models,
        tofu_path,
        folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_steps=3,
        audit_during_training="true",
        load_best_model_at_end="true",
        metric_for_best_model="eval_forget/probability",
        greater_is_better="false",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        per_device_eval_batch_size=50,
    )
    start([*LAUNCHES["hf-unlearn"], *words_of(fields)], tmp_path)
    logged = audited_steps(folder)
    assert sorted(logged) == [1, 2, 3]
    best = min(logged, key=logged.get)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    assert models_of(folder)["out"]["train"]["processes"] == 2
    assert models_of(folder)["out"]["metrics"]["forget/probability"]["value"] == pytest.approx(logged[best], rel=1e-5)
    assert same_weights(folder, folder / f"checkpoint-{best}")

    # Evaluated on two processes, the checkpoint has the numbers that its run gave it.
    words = ["eval", "--accelerate_config", "cpu", "--system_prompt", "You are a helpful assistant."]
    evaluated = {
        "model_name_or_path": folder,
        "benchmark": "tofu",
        **{name: fields[name] for name in ("benchmark_path", "forget_split", "max_new_tokens", "audit_max_items")},
        "use_chat_template": "false",
        "output_dir": tmp_path / "eval",
    }
    start(["-m", "hf_unlearn.cli.main", *words, *words_of(evaluated)], tmp_path)
    for name, metric in models_of(folder)["out"]["metrics"].items():
        if name != "forget_quality":
            again = models_of(tmp_path / "eval")["out"]["metrics"][name]["value"]
            assert again == pytest.approx(metric["value"], rel=1e-5, abs=1e-9), name
