# SPDX-License-Identifier: Apache-2.0
"""What goes into a trainer and what comes out: paths, dtypes, tokenizers, forms of running, saved folders."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, train_batch, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn import GATrainer


# Forms of running


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_changes_no_weight(build, adapter):
    results = []
    for checkpointing in (False, True):
        given = {"peft_config": lora()} if adapter else None
        trainer = build(given=given, retain_loss="kl", activation_checkpointing=checkpointing, max_steps=3)
        before = weights(trainer.model)
        trainer.train()
        assert changed(before, weights(trainer.model))
        results.append(weights(trainer.model))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-7)


def test_a_second_call_of_train_goes_on(build):
    trainer = build(retain_loss="kl", max_steps=2)
    trainer.train()
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model))
    entry = trainer.state.log_history[0]
    # The reference is the model as it entered the trainer, not as it entered this call.
    assert entry["forget/logps"] < entry["forget/ref_logps"]


def test_bfloat16_mixed_precision_trains(build):
    trainer = build(retain_loss="kl", bf16=True, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert {tensor.dtype for tensor in weights(trainer.model).values()} == {torch.float32}
    assert changed(before, weights(trainer.model))
    assert trainer.state.log_history[0]["forget/loss"] == pytest.approx(2 * math.log(2) / 0.1, rel=1e-2)


@pytest.mark.parametrize("remove", [True, False])
def test_columns_are_handled_whatever_remove_unused_columns_says(build, remove, retain_rows):
    trainer = build(retain_loss="nll", remove_unused_columns=remove, max_steps=1, given={"eval_dataset": retain_rows})
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.evaluate()["eval_loss"] > 0


# Models that come in


def test_a_path_gives_the_same_run_as_the_model(build, model_path):
    by_path = build(given={"model": model_path, "processing_class": None}, retain_loss="kl", max_steps=2)
    by_model = build(given={"model": AutoModelForCausalLM.from_pretrained(model_path)}, retain_loss="kl", max_steps=2)
    for trainer in (by_path, by_model):
        trainer.train()
    assert not changed(weights(by_path.model), weights(by_model.model))
    assert by_path.processing_class.get_vocab() == make_tokenizer().get_vocab()


def test_a_path_object_is_a_path(build, model_path):
    trainer = build(given={"model": Path(model_path), "processing_class": None})
    assert trainer.model.num_parameters() == make_model().num_parameters()


def test_models_load_in_float32_unless_asked_otherwise(build, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    make_tokenizer().save_pretrained(tmp_path / "bf16")
    given = {"model": str(tmp_path / "bf16"), "processing_class": None}
    assert build(GATrainer, given=given).model.dtype == torch.float32
    asked = build(
        given=given, retain_loss="kl", model_init_kwargs={"dtype": "bfloat16"}, max_steps=1, reference="live"
    )
    assert asked.model.dtype == asked.reference.model.dtype == torch.bfloat16
    asked.train()
    # bfloat16 logits, yet a loss computed in float32: 13.8629 has no neighbour in bfloat16 nearer than 0.06.
    assert asked.state.log_history[0]["forget/loss"] == pytest.approx(2 * math.log(2) / 0.1, abs=1e-3)


def test_a_tokenizer_without_pad_token_pads_with_eos_and_says_so(build, caplog):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    trainer = build(given={"processing_class": tokenizer}, retain_loss="kl", max_steps=1)
    trainer.train()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == trainer.data_collator.pad_token_id
    assert "no pad token; batches are padded with EOS ('</s>')" in caplog.text
    batch = train_batch(trainer, [0, 1])
    real = [len(trainer.train_dataset.roles["forget"][int(i)]["input_ids"]) for i in batch["index"][:2]]
    assert batch["attention_mask"][:2].sum(-1).tolist() == real


def test_forget_and_retain_may_be_of_different_types(build):
    question = {"role": "user", "content": "Who?"}
    forget = [{"messages": [question, {"role": "assistant", "content": f"Ada {i}"}]} for i in range(3)]
    retain = [{"input_ids": [1, 40 + i, 50, 2], "labels": [-100, -100, 50, 2]} for i in range(3)]
    trainer = build(given={"forget_dataset": forget, "retain_dataset": retain}, retain_loss="kl", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["retain/nll"] > 0


# What is left behind


def attached(model) -> dict:
    """Everything that one can hang on a model without changing a weight."""
    found = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        # accelerate's mark stays; it is a bool that changes nothing.
        own = sorted(set(vars(module)) - {"_is_accelerate_prepared"})
        found[name] = (type(module), *map(len, hooks), "forward" in own, own)
    return found


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_nothing_of_ours_stays_on_the_model(build, retain_loss):
    model = make_model()
    before, names = attached(model), [name for name, _ in model.named_parameters()]
    trainer = build(given={"model": model}, retain_loss=retain_loss, max_steps=2)
    trainer.train()
    assert attached(model) == before
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_run_is_a_plain_checkpoint(build, tmp_path, forget_rows):
    trainer = build(retain_loss="kl", max_steps=2)
    trainer.train()
    trainer.save_model()
    files = set(os.listdir(tmp_path / "out"))
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    weight_files = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".safetensors", ".ckpt", ".pkl"))]
    assert sorted(weight_files) == ["model.safetensors", "training_args.bin"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not changed(weights(trainer.model), weights(loaded))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = forget_rows[0]["prompt"]
    assert tokenizer(text)["input_ids"] == trainer.processing_class(text)["input_ids"]
    assert tokenizer.chat_template == trainer.processing_class.chat_template


def test_intermediate_checkpoints_hold_weights_as_safetensors_and_a_card(build, tmp_path):
    build(retain_loss="kl", max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "out" / "checkpoint-1"
    assert load_file(folder / "model.safetensors")
    assert not (folder / "pytorch_model.bin").exists()
    assert (folder / "README.md").exists()
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 1


def test_a_trained_adapter_is_saved_alone(build, tmp_path):
    from peft import PeftModel

    trainer = build(given={"peft_config": lora()}, retain_loss="kl", max_steps=2)
    trainer.train()
    trainer.save_model()
    files = set(os.listdir(tmp_path / "out"))
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    assert not [name for name in files if (tmp_path / "out" / name).is_dir()]
    loaded = PeftModel.from_pretrained(make_model(), tmp_path / "out")
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
