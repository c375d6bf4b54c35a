# SPDX-License-Identifier: Apache-2.0
"""A head that is the embedding too, and one that is given weights of its own."""

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights
from test_zoo_of_models import assert_same_run, run
from transformers import AutoModelForCausalLM
from zoo import small

from hf_unlearn.cli.main import main
from hf_unlearn.models.tied import embeddings_are_tied, untie_embeddings


HEAD = {"trainable_modules": ["lm_head"], "untie_embeddings": True, "retain_loss": "kl"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "bloom"])
def test_an_untied_model_computes_and_loads_as_the_tied_one(name, tmp_path):
    model = small(name, tie_word_embeddings=True)
    assert embeddings_are_tied(model)
    ids = torch.arange(5, 14)[None]
    wanted = model(input_ids=ids).logits
    untie_embeddings(model)
    assert not embeddings_are_tied(model)
    assert torch.equal(model(input_ids=ids).logits, wanted)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    wanted = model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not embeddings_are_tied(loaded)
    assert torch.equal(loaded.eval()(input_ids=ids).logits, wanted)
    untie_embeddings(loaded)
    assert torch.equal(loaded(input_ids=ids).logits, wanted)


def test_the_head_alone_trains_on_kept_states(tmp_path):
    model = make_model(tie=True)
    before = weights(model)
    trainer = run(tmp_path, model, **HEAD)
    assert changed(before, {n: w for n, w in weights(model).items() if n in before}) == set()
    assert trainer.forward_path.prefix.depth == 2
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert_same_run(trainer, run(tmp_path, make_model(tie=True), **HEAD, cache_frozen=False))
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not changed(weights(model), weights(loaded))


def test_a_tied_head_trains_the_embedding_and_says_what_to_do(tmp_path, caplog):
    trainer = run(tmp_path, make_model(tie=True), trainable_modules=["lm_head"], max_steps=1)
    assert trainer.forward_path.prefix is None
    assert "untie_embeddings=True gives the head weights of its own." in caplog.text


def test_adapters_are_not_untied(tmp_path):
    with pytest.raises(ValueError, match="untie_embeddings changes the model below the adapter"):
        run(tmp_path, make_model(tie=True), peft_config=lora(), untie_embeddings=True)


def test_plan_says_that_head_and_embedding_are_one(tmp_path, capsys):
    make_model(tie=True).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    words = ["plan", "--method", "npo", "--model_name_or_path", str(tmp_path / "model"), "--benchmark", "tofu"]
    words += ["--output_dir", str(tmp_path / "out"), "--trainable_modules", "lm_head"]
    main(words)
    assert "head and embedding of this model are one tensor (tied)" in " ".join(capsys.readouterr().out.split())
    main([*words, "--untie_embeddings", "true"])
    assert "one tensor" not in capsys.readouterr().out
