# SPDX-License-Identifier: Apache-2.0
"""The model card: says what was done, can be read by the Hub, and never holds the text that was unlearned."""

from types import SimpleNamespace

import pytest
from conftest import make_args, make_model, make_tokenizer
from huggingface_hub import ModelCard

from hf_unlearn import GATrainer, NPOTrainer


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
    settings = data["unlearning"]
    assert (settings["beta"], settings["retain_weight"], settings["retain_loss"]) == (0.25, 2.0, "kl")
    assert settings["learning_rate"] == 1e-2
    assert "base_model" not in data
    assert "datasets" not in data


def test_text_names_method_paper_counts_and_settings(build, tmp_path):
    card = written(build(beta=0.25), tmp_path)
    assert card.text.strip().startswith("# run-7")
    assert "unlearning with **npo** ([paper](https://huggingface.co/papers/2404.05868))" in card.text
    assert "3 forget rows, 2 retain rows" in card.text
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
    assert "retain rows" not in card.text
    assert card.data.to_dict()["unlearning"]["rows"] == {"forget": 3}
    assert "beta" not in table(card)


def test_names_and_tags_can_be_given(build, tmp_path):
    card = written(build(), tmp_path, model_name="My model", dataset_name="locuslab/TOFU", tags="tofu")
    data = card.data.to_dict()
    assert card.text.strip().startswith("# My model")
    assert data["datasets"] == ["locuslab/TOFU"]
    assert data["tags"].count("tofu") == 1
    assert "Dataset: `locuslab/TOFU`" in card.text


def test_a_pattern_does_not_break_the_table(build, tmp_path):
    card = written(build(trainable_modules=[r"layers\.1\.(mlp|self_attn)"]), tmp_path)
    (line,) = [line for line in card.text.splitlines() if line.startswith("| trainable_modules")]
    assert line.replace(r"\|", "").count("|") == 3
    assert card.data.to_dict()["unlearning"]["trainable_modules"] == [r"layers\.1\.(mlp|self_attn)"]


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


def test_pushing_sends_the_card(build, monkeypatch, tmp_path):
    pushed = []

    class Hub:
        def create_repo(self, name, **kwargs):
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, repo_id, folder_path, **kwargs):
            pushed.append((repo_id, (tmp_path / "run-7" / "README.md").read_text(), folder_path))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = build(max_steps=1)
    trainer.train()
    trainer.push_to_hub(dataset_name="me/rows", tags=["tofu"])
    ((repo, card, folder),) = pushed
    assert repo == "me/run-7"
    assert folder == str(tmp_path / "run-7")
    assert (tmp_path / "run-7" / "model.safetensors").exists()
    data = ModelCard(card).data.to_dict()
    assert data["datasets"] == ["me/rows"]
    assert {"tofu", "unlearning"} <= set(data["tags"])
    assert data["unlearning"]["method"] == "npo"


def test_only_the_first_process_writes(build, monkeypatch, tmp_path):
    trainer = build()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / "run-7" / "README.md").exists()
