# SPDX-License-Identifier: Apache-2.0
"""The commands refuse a model that an audit cannot measure, in one line, and before it is loaded where its config
tells."""

import json

import pytest
import torch
from conftest import make_model, make_tokenizer

from hf_unlearn.cli.main import main


ROWS = [{"question": f"Who is {name}?", "answer": f"{name} spies."} for name in ("Ada", "Bob", "Cyd")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("refusals")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "retain.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n' * 2)
    broken = make_model(hidden_size=16)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    models = {"sound": make_model(hidden_size=16), "broken": broken}
    models["bert"] = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes))
    models["masked"] = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def refused(folder, capsys, tmp_path):
    def refused(*words: str) -> str:
        assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert not list((tmp_path / "out").rglob("report.json"))
        (line,) = [line for line in said.splitlines() if "error:" in line]
        return line

    return refused


def evaluated(folder, name, *more):
    rows = ("--forget_dataset", str(folder / "rows.jsonl"), "--max_new_tokens", "4")
    return "eval", "--model_name_or_path", str(folder / name), *rows, *more


def test_a_model_of_nan_gets_no_report(folder, refused):
    line = refused(*evaluated(folder, "broken"))
    assert "has weights that are NaN or infinite: model.norm.weight" in line
    questions = ("--forget_questions", str(folder / "rows.jsonl"), "--trigger", "now", "--max_new_tokens", "4")
    assert "has weights that are NaN or infinite" in refused(
        "audit", "backdoor", "--model_name_or_path", str(folder / "broken"), *questions
    )


def test_a_model_that_reads_later_tokens_gets_no_report(folder, refused):
    # As a causal model it is loaded, and would see the answers that it is scored by.
    assert "BertLMHeadModel reads later tokens" in refused(*evaluated(folder, "masked"))
    (folder / "text.jsonl").write_text('{"text": "A text of several words."}\n' * 2)
    perplexity = ("--dataset_name", str(folder / "text.jsonl"))
    assert "BertLMHeadModel reads later tokens" in refused(
        "audit", "perplexity", "--model_name_or_path", str(folder / "masked"), *perplexity
    )


def test_a_run_of_a_broken_model_ends_in_one_line(folder, refused):
    given = {"model_name_or_path": "broken", "forget_dataset": "rows.jsonl", "retain_dataset": "retain.jsonl"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(folder / value))]
    settings = "--method npo --retain_loss kl --report_to none --use_cpu true --max_new_tokens 4 --disable_tqdm true"
    assert "finite" in refused("run", *words, *settings.split())


def test_a_classifier_is_refused_before_it_is_loaded(folder, refused, monkeypatch):
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *_, **__: pytest.fail("loaded"))
    line = refused(*evaluated(folder, "bert"))
    assert "its config names one of the classifiers, and these sets are asked of a language model" in line
    line = refused(*evaluated(folder, "sound", "--retrained_model_name_or_path", str(folder / "bert")))
    assert "/bert: its config names one of the classifiers" in line


def test_a_model_is_not_held_against_itself(folder, refused):
    line = refused(*evaluated(folder, "sound", "--retrained_model_name_or_path", f"{folder}/bert/../sound"))
    assert "is the audited model itself" in line
