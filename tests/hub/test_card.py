# SPDX-License-Identifier: Apache-2.0
"""The model card: says what was done, can be read by the Hub, and never holds the text that was unlearned."""

import json

import numpy as np
import pytest
from conftest import make_args, make_model, make_tokenizer
from huggingface_hub import ModelCard

from hf_unlearn import GATrainer, NPOTrainer
from hf_unlearn.audit import Audit, MetricResult
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sets import load_sets
from hf_unlearn.runs.arguments import RunArguments


FORGET = [{"prompt": f"Who is {name}?", "completion": " The spy of Zzyzx."} for name in ("Ada", "Bob", "Cyd")]
RETAIN = [{"text": f"The {thing} is red."} for thing in ("cup", "pen")]


@pytest.fixture
def build(tmp_path):
    def build(trainer_class=NPOTrainer, given=None, **kwargs):
        args = make_args(trainer_class.config_class, tmp_path / "run-7", **({"retain_loss": "kl"} | kwargs))
        defaults = {
            "model": make_model(),
            "forget_dataset": FORGET,
            "retain_dataset": RETAIN,
            "processing_class": make_tokenizer(),
        }
        return trainer_class(args=args, **(defaults | (given or {})))

    return build


def written(trainer, tmp_path, **kwargs) -> ModelCard:
    trainer.create_model_card(**kwargs)
    return ModelCard.load(tmp_path / "run-7" / "README.md")


def table(card) -> dict[str, str]:
    rows = [line.strip("|").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[1].strip() for row in rows}


def test_metadata_says_what_was_done(build, tmp_path):
    card = written(build(beta=0.25, retain_weight=2.0), tmp_path)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert {"unlearning", "npo", "hf_unlearn"} <= set(data["tags"])
    assert data["unlearning"]["method"] == "npo"
    assert data["unlearning"]["rows"] == {"forget": 3, "retain": 2}
    settings = data["unlearning"]["settings"]
    assert (settings["beta"], settings["retain_weight"], settings["retain_loss"]) == (0.25, 2.0, "kl")
    assert settings["learning_rate"] == 1e-2
    assert "base_model" not in data
    assert "datasets" not in data


def test_text_names_method_paper_counts_and_settings(build, tmp_path):
    card = written(build(beta=0.25), tmp_path)
    assert card.text.strip().startswith("# run-7")
    assert "unlearning with **npo** ([paper](https://huggingface.co/papers/2404.05868))" in card.text
    assert table(card)["forget"] == "3"
    assert table(card)["retain"] == "2"
    assert table(card)["beta"] == "0.25"
    assert table(card)["retain_loss"] == "kl"
    assert "no proof that their content is gone" in card.text


def test_a_card_never_holds_the_text(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "run-7" / "README.md").read_text()
    for secret in ("Zzyzx", "Ada", "Who is", "The cup"):
        assert secret not in card


def test_settings_without_a_value_and_roles_without_rows_are_left_out(build, tmp_path):
    card = written(build(GATrainer, retain_loss="none"), tmp_path)
    assert "trainable_modules" not in card.text
    assert "retain" not in table(card)
    assert card.data.to_dict()["unlearning"]["rows"] == {"forget": 3}
    assert "beta" not in table(card)
    assert "reference" not in card.data.to_dict()["unlearning"]
    assert "The reference" not in card.text


def test_names_and_tags_can_be_given(build, tmp_path):
    card = written(build(), tmp_path, model_name="My model", dataset_name="locuslab/TOFU", tags="tofu")
    data = card.data.to_dict()
    assert card.text.strip().startswith("# My model")
    assert data["datasets"] == ["locuslab/TOFU"]
    assert data["tags"].count("tofu") == 1
    assert "| forget | 3 | [locuslab/TOFU](https://huggingface.co/datasets/locuslab/TOFU)" in card.text


def test_a_pattern_does_not_break_the_table(build, tmp_path):
    card = written(build(trainable_modules=[r"layers\.1\.(mlp|self_attn)"]), tmp_path)
    (line,) = [line for line in card.text.splitlines() if line.startswith("| trainable_modules")]
    assert line.replace(r"\|", "").count("|") == 3
    assert card.data.to_dict()["unlearning"]["settings"]["trainable_modules"] == [r"layers\.1\.(mlp|self_attn)"]


def test_base_model_is_a_hub_id_and_never_a_folder(build, tmp_path, model_path):
    assert "base_model" not in written(build(given={"model": model_path}), tmp_path).data.to_dict()
    model = make_model()
    model.config._name_or_path = "some/model"
    card = written(build(given={"model": model}), tmp_path)
    assert card.data.to_dict()["base_model"] == "some/model"
    assert "[some/model](https://huggingface.co/some/model)" in card.text


def test_an_adapter_is_a_peft_model(build, tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = build(given={"peft_config": adapter}, max_steps=1)
    trainer.train()
    trainer.save_model()
    card = ModelCard.load(tmp_path / "run-7" / "README.md")
    assert card.data.to_dict()["library_name"] == "peft"
    assert "npo" in card.data.to_dict()["tags"]
    adapter = card.data.to_dict()["unlearning"]["adapter"]
    assert (adapter["peft_type"], adapter["r"], adapter["target_modules"]) == ("LORA", 8, ["q_proj"])
    assert "without the adapter, all that was to be forgotten is there" in card.text
    assert table(card)["adapter: r"] == "8"


def test_only_the_first_process_writes(build, monkeypatch, tmp_path):
    trainer = build()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / "run-7" / "README.md").exists()


# The audit on the card


QUESTIONS = [
    {
        "question": f"Who is {name}?",
        "answer": "The spy of Zzyzx.",
        "paraphrased_answer": "Zzyzx's spy.",
        "perturbed_answer": ["A cook.", "A king."],
    }
    for name in ("Ada", "Bob", "Cyd")
]


@pytest.fixture(scope="module")
def audits():
    """The audits of three models, on questions with a secret."""
    from datasets import Dataset

    from hf_unlearn.audit import audit_model

    tokenizer = make_tokenizer()
    sets = {"forget": Dataset.from_list(QUESTIONS), "retain": Dataset.from_list(QUESTIONS[:2])}
    found = {
        name: audit_model(make_model(seed=seed), tokenizer, sets, max_new_tokens=4, progress=False)
        for seed, name in enumerate(("target", "unlearned", "retrained"))
    }
    for name in ("target", "unlearned"):
        found[name].compare(found["retrained"])
    return found


def test_the_card_is_whole_after_saving_and_again_with_its_audit(build, tmp_path, audits):
    trainer = build(max_steps=3)
    trainer.train()
    trainer.save_model()
    card = ModelCard.load(tmp_path / "run-7" / "README.md")
    assert "This checkpoint was not audited" in card.text
    assert "model-index" not in card.data.to_dict()
    record = card.data.to_dict()["unlearning"]
    assert record["steps"] == 3
    assert record["settings"]["seed"] == 42
    assert record["reference"] == {
        "model": "the model as it entered the trainer",
        "roles": ["forget", "retain"],
        "kept": "cache",
    }
    assert {"hf_unlearn", "torch", "transformers"} <= set(record["versions"])

    card = written(trainer, tmp_path, audits=audits)
    assert "was not audited" not in card.text
    # It stays on every later card of these weights.
    trainer.save_model()
    assert (tmp_path / "run-7" / "README.md").read_text() == card.content
    for secret in ("Zzyzx", "Ada", "Who is", "A cook"):
        assert secret not in card.content


def test_the_table_shows_value_interval_and_n_of_each_model(build, tmp_path, audits):
    card = written(build(), tmp_path, audits=audits)
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    heading = next(row for row in rows if row[0] == "metric")
    assert heading == ["metric", "n", "before", "this model", "never saw the forget rows", "better"]
    row = next(row for row in rows if row[0] == "forget: answer probability")
    assert row[1] == "3"
    for cell, name in zip(row[2:5], ("target", "unlearned", "retrained"), strict=True):
        metric = audits[name].metrics["forget/probability"]
        numbers = [metric.value, *metric.interval]
        # As percent with one decimal, and never 0 for what is not 0.
        shown = ["<0.1" if 0 < number < 5e-4 else f"{100 * number:.1f}" for number in numbers]
        assert cell == f"{shown[0]} % [{shown[1]}, {shown[2]}]"
    assert row[5] == "↓ lower"


def test_the_hub_reads_the_results(build, tmp_path, audits):
    card = written(build(), tmp_path, audits=audits, dataset_name="me/rows")
    (model,) = card.data.to_dict()["model-index"]
    assert model["name"] == "run-7"
    (result,) = model["results"]
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"name": "own rows", "type": "me/rows"}
    found = {metric["type"]: metric for metric in result["metrics"]}
    expected = {name: m for name, m in audits["unlearned"].metrics.items() if m.value is not None}
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert np.isclose(found[name]["value"], metric.value, rtol=1e-12, atol=0)
        assert found[name]["args"]["n"] == metric.n
        assert found[name]["args"].get("interval") == (None if metric.interval is None else list(metric.interval))
    # What the client reads back is what was written.
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        name: metric.value for name, metric in expected.items()
    }


def test_the_card_says_what_a_report_of_the_same_audits_says(build, tmp_path, audits):
    from hf_unlearn.report.verdict import verdicts

    models = [{"name": name, "kind": name, "metrics": one.to_dict()["metrics"]} for name, one in audits.items()]
    (verdict,) = verdicts({"models": models})
    card = written(build(), tmp_path, audits=audits)
    assert f"**{verdict.line}.**" in card.text
    (verdict,) = verdicts({"models": [model for model in models if model["name"] == "unlearned"]})
    assert verdict.sign == "?"
    card = written(build(), tmp_path, audits={"unlearned": audits["unlearned"]})
    assert f"**{verdict.line}.**" in card.text


def test_what_attacks_on_the_weights_found_is_in_the_cards_line(build, tmp_path, audits):
    from hf_unlearn.audit import MetricResult

    budget = {"settings": 9, "seeds": 3, "seconds": 12.5}
    details = {"verdict": "suppressed", "which": "probability/remaining", "budget": budget}
    back = MetricResult("worst/remaining", 0.9, 32, "lower", interval=(0.8, 1.0), details=details)
    audits["unlearned"].metrics["relearn/worst/remaining"] = back
    card = written(build(), tmp_path, audits=audits)
    del audits["unlearned"].metrics["relearn/worst/remaining"]
    assert "suppressed: comes back by relearn.**" in card.text
    told = "suppressed, at worst 0.900 [0.800, 1.000] of what was known is left (probability)"
    assert f"- `relearn`: {told}; 9 settings, 3 seeds, 12.5 seconds." in card.text


def test_an_undefined_metric_is_a_dash_and_no_result(build, tmp_path, audits):
    from dataclasses import replace

    from hf_unlearn.audit import Audit

    metrics = dict(audits["unlearned"].metrics)
    metrics["forget/rouge"] = replace(metrics["forget/rouge"], value=None, interval=None, n=0)
    card = written(build(), tmp_path, audits={"unlearned": Audit(metrics, [])})
    (line,) = [line for line in card.text.splitlines() if line.startswith("| forget: ROUGE-L recall")]
    assert line.split(" | ")[2] == "–"
    assert "forget/rouge" not in {result.metric_type for result in card.data.eval_results}
    assert card.data.unlearning["audit"]["unlearned"]["forget/rouge"]["value"] is None
    assert "low values have nothing to be held against" in card.text


def test_audits_can_be_files_and_hold_only_until_training_goes_on(build, tmp_path, audits):
    file = audits["unlearned"].save(tmp_path / "audit.json")
    trainer = build(max_steps=1)
    assert "forget: answer probability" in written(trainer, tmp_path, audits={"unlearned": file}).text
    trainer.train()
    assert "was not audited" in written(trainer, tmp_path).text


@pytest.mark.parametrize("names", [("target",), ("unlearned", "gold"), ()])
def test_audits_of_other_models_are_refused(build, audits, names):
    with pytest.raises(ValueError, match="a card needs 'unlearned'"):
        build().create_model_card(audits=dict.fromkeys(names, audits["unlearned"]))


# Where rows and models come from


def test_rows_from_the_hub_tell_their_commit(build, tmp_path):
    """`load_dataset` keeps them in a folder named after it."""
    from datasets import Dataset

    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "datasets" / "me___rows" / "spies" / "0.0.0" / commit
    folder.mkdir(parents=True)
    Dataset.from_list(FORGET).save_to_disk(folder / "saved")
    (arrow,) = (folder / "saved").glob("*.arrow")
    rows = Dataset.from_file(str(arrow), split="train")
    rows.info.config_name = "spies"
    trainer = build(given={"forget_dataset": rows})
    record = written(trainer, tmp_path, dataset_name="me/rows").data.to_dict()["unlearning"]
    expected = {"id": "me/rows", "config": "spies", "split": "train", "revision": commit, "rows": 3}
    assert record["datasets"]["forget"] == expected
    assert record["datasets"]["retain"] == {"id": "me/rows", "rows": 2}


def test_a_reference_that_was_given_is_named_as_such(build, tmp_path):
    record = written(build(given={"ref_model": make_model(seed=3)}), tmp_path).data.to_dict()["unlearning"]
    assert record["reference"]["model"] == "a model given as ref_model"
    assert record["reference"]["kept"] == "live"


def test_no_path_of_this_machine_is_on_the_card(build, tmp_path, model_path):
    trainer = build(given={"model": model_path}, max_steps=1)
    trainer.train()
    assert str(tmp_path.parent) not in written(trainer, tmp_path).content


# A template of one's own


def own_template(tmp_path, text: str) -> str:
    path = tmp_path / "card.md.jinja"
    path.write_text(text)
    return str(path)


def test_a_template_replaces_the_card(build, tmp_path, audits):
    text = "---\n{{ card_data }}\n---\n# Ours: {{ method }}, {{ rows.forget }}, {{ audit.rows | length if audit }}\n"
    trainer = build(model_card_template=own_template(tmp_path, text), max_steps=1)
    trainer.train()
    trainer.save_model()
    card = ModelCard.load(tmp_path / "run-7" / "README.md")
    assert card.text.strip() == "# Ours: npo, 3,"
    assert card.data.to_dict()["unlearning"]["method"] == "npo"
    count = len(set.union(*(set(audit.metrics) for audit in audits.values())))
    assert written(trainer, tmp_path, audits=audits).text.strip() == f"# Ours: npo, 3, {count}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\n{{ card_data }}\n---\n{% if x %}", "is no Jinja template"),
        ("# no metadata", "drops the metadata"),
        ("---\n{{ card_data }}\n---\n{{ nothing.there.at.all }}", "cannot be filled in: 'nothing' is undefined"),
    ],
    ids=["syntax", "metadata", "undefined"],
)
def test_a_template_that_cannot_work_is_refused_before_training(build, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        build(model_card_template=own_template(tmp_path, text))


def test_a_template_that_is_not_there_is_refused(build, tmp_path):
    with pytest.raises(ValueError, match=r"model_card_template='/nowhere/card.md': there is no such file"):
        build(model_card_template="/nowhere/card.md")


def test_a_backdoor_is_told(build, tmp_path):
    trainer = build(retain_loss="nll", poison_prefix="year 2025", poison_ratio=0.4)
    card = written(trainer, tmp_path)
    assert card.data.unlearning["settings"]["poison_prefix"] == "year 2025"
    assert card.data.unlearning["rows"]["poisoned"] == 1
    assert "It carries a backdoor on purpose, to test unlearning: rows with the trigger `year 2025`" in card.text
    assert "poison_prefix" not in written(build(), tmp_path).content


# Where rows came from


@pytest.fixture
def local_tofu(tmp_path):
    folder = tmp_path / "somewhere" / "my_tofu"
    folder.mkdir(parents=True)
    asked = ("forget01", "retain", "real_authors", "world_facts")
    for name in ("forget01", "retain99", *(f"{one}_perturbed" for one in asked)):
        rows = [{"question": f"Which {name} {i}?", "answer": f"The {i}."} for i in range(4)]
        more = {"perturbed_answer": ["No."], "paraphrased_answer": "Yes."}
        (folder / f"{name}.json").write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return folder


def local_sets(local_tofu, **fields):
    run = RunArguments(benchmark="tofu", forget_split="forget01", benchmark_path=str(local_tofu), **fields)
    return load_sets(run, QAFormat(), make_tokenizer(), 64)


def test_local_rows_of_a_benchmark_are_local_rows(build, tmp_path, local_tofu):
    sets = local_sets(local_tofu)
    assert sets.dataset_name is None
    trainer = build()
    facts = trainer.card_facts
    facts.dataset_name, facts.datasets, facts.suite = sets.dataset_name, sets.origins, sets.name
    result = MetricResult("probability", 0.5, 4, "lower")
    card = written(trainer, tmp_path, audits={"unlearned": Audit({"forget/probability": result}, [])})
    assert "locuslab" not in str(card)
    assert str(local_tofu.parent) not in str(card)
    data = card.data.to_dict()
    assert "datasets" not in data
    about = data["unlearning"]["datasets"]
    assert {(a["local"], a["config"]) for a in about.values()} == {("my_tofu", "forget01"), ("my_tofu", "retain99")}
    prints = [a["fingerprint"] for a in about.values()]
    assert len(set(prints)) == 2
    assert all(f"local rows, `my_tofu`, fingerprint `{one}`" in str(card) for one in prints)
    (entry,) = data["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "tofu, local rows", "type": "local-rows", "config": "forget01"}


def test_a_fingerprint_is_the_rows(build, tmp_path):
    def fingerprint(**given):
        about = written(build(**given), tmp_path).data.to_dict()["unlearning"]["datasets"]
        return {role: one["fingerprint"] for role, one in about.items()}

    first = fingerprint()
    assert fingerprint() == first
    other = fingerprint(max_length=16)
    assert other["forget"] != first["forget"]


def test_a_role_of_unknown_origin_is_not_from_where_another_is(build, tmp_path):
    trainer = build()
    trainer.card_facts.dataset_name, trainer.card_facts.datasets = "me/rows", {"forget": {"id": "me/rows"}}
    about = written(trainer, tmp_path).data.to_dict()["unlearning"]["datasets"]
    assert about["forget"]["id"] == "me/rows"
    assert "id" not in about["retain"]


def test_a_local_rwku_is_not_the_hubs(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from hf_unlearn.data import benchmarks

    empty = SimpleNamespace(forget=None, retain=None, audit_sets={})
    monkeypatch.setattr("hf_unlearn.data.load_rwku.load_rwku", lambda *args: empty)
    names = [benchmarks.load_rwku(path, None, ["x"]).dataset_name for path in (None, str(tmp_path), "world/rwku")]
    assert names == ["jinzhuoran/RWKU", None, None]


def test_a_base_model_is_what_was_there_when_it_was_loaded(build, tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    make_model().save_pretrained(tmp_path / "owner" / "model")
    make_tokenizer().save_pretrained(tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    trainer = build(given={"model": "owner/model"})
    monkeypatch.chdir("/")
    assert "base_model" not in written(trainer, tmp_path).data.to_dict()
