# SPDX-License-Identifier: Apache-2.0
"""Which parameters RMU trains, in several architectures, and what it refuses."""

import pytest
import test_rmu
import torch
from conftest import changed, lora, weights
from test_rmu import PLAIN, SGD, TOPICS, VOCABULARY, assert_same, outcome
from transformers import AutoConfig, AutoModelForCausalLM

from hf_unlearn import RMUConfig


# The fixture.
build = test_rmu.build


def tiny(kind: str):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    size |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0, "head_dim": 16}
    if kind == "gpt_neox":
        del size["head_dim"]
    else:
        size["num_key_value_heads"] = 1
    if kind == "mixtral":
        size |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **size))


def trained_names(trainer) -> list[str]:
    return [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3", "mixtral"])
def test_the_down_projection_is_found_by_name(build, kind):
    trainer = build(model=tiny(kind), layer_id=1, layer_ids=[1], max_steps=2)
    names = trained_names(trainer)
    assert len(names) == 1
    assert "layers.1." in names[0]
    assert "down_proj" in names[0]
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == set(names)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "mlp.down_proj.weight"), ("qwen2", "self_attn.o_proj.weight"), ("qwen3", "mlp.gate_proj.weight")],
)
def test_positions_are_translated_and_told(build, kind, name, caplog):
    # The sixth of a layer's parameters is the down projection in Llama, and something else elsewhere.
    trainer = build(model=tiny(kind), layer_id=1, layer_ids=[0, 1], param_ids=[6])
    assert trained_names(trainer) == [f"model.layers.{layer}.{name}" for layer in (0, 1)]
    assert f"param_ids=[6] are model.layers.0.{name}, model.layers.1.{name}" in caplog.text


def test_other_architectures_are_told_apart_by_name(build):
    with pytest.raises(ValueError, match=r"match no parameter of the layers \[1\].*dense_4h_to_h") as raised:
        build(model=tiny("gpt_neox"), layer_id=1, layer_ids=[1])
    assert "down_proj" in str(raised.value)
    settings = {"layer_id": 1, "layer_ids": [1], "module_names": ["dense_4h_to_h.weight"]}
    wanted = None
    for path in ({}, PLAIN):
        trainer = build(model=tiny("gpt_neox"), **settings, **path, **SGD)
        assert trained_names(trainer) == ["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
        found = outcome(trainer)
        wanted = wanted or found
        assert_same(found, wanted)


def test_trainable_modules_take_the_place_of_names(build):
    trainer = build(trainable_modules=[r"layers\.2\.self_attn\.v_proj"])
    assert trained_names(trainer) == ["model.layers.2.self_attn.v_proj.weight"]


def test_adapters_train_in_the_chosen_layers(build):
    trainer = build(peft_config=lora())
    assert len(trained_names(trainer)) == 8
    assert all(".layers.1." in name or ".layers.2." in name for name in trained_names(trainer))


# What cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_id": 4}, r"layer_id=4; the model has 4 layers: give 0 to 3"),
        ({"layer_id": -1}, r"layer_id=-1; the model has 4 layers"),
        ({"layer_ids": [1, 9]}, r"layer_ids=9; the model has 4 layers"),
        ({"layer_ids": [2, 3]}, r"layer 3 is above layer_id=2, whose output it cannot change"),
        ({"layer_ids": []}, r"match no parameter of the layers \[\]"),
        ({"module_names": ["up_project"]}, r"module_names=\['up_project'\] match no parameter.*q_proj"),
        ({"param_ids": [9]}, r"param_ids=\[9\]; a layer has 9 parameters, counted from 0"),
        ({"trainable_modules": ["lm_head"]}, r"lm_head.weight cannot change the output of layer_id=2"),
        ({"trainable_modules": ["down_proj"]}, r"layers.3.mlp.down_proj.weight cannot change"),
        ({"steering_coeffs": [1.0, 2.0]}, r"steering_coeffs=\[1.0, 2.0\]: the forget rows have 1 topics"),
        ({"forget": TOPICS, "alphas": [1.0, 2.0, 3.0]}, r"alphas=\[1.0, 2.0, 3.0\]: .* 2 topics; give 1 or 2 numbers"),
    ],
)
def test_what_the_model_or_the_rows_cannot_follow_is_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_forget_loss": 5.0}, "max_forget_loss watches log-likelihoods, which RMU does not compute"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpointing cuts their gradients"),
        ({"retain_loss": "kl"}, "retain_loss='kl'; allowed: 'none', 'states'"),
        ({"kl_coeff": -1.0}, "kl_coeff=-1.0"),
        ({"steering_coeffs": []}, "steering_coeffs is empty"),
        ({"steering_coeffs": [-2.0]}, "steering_coeffs=-2.0"),
        ({"alphas": [-1.0]}, "alphas=-1.0"),
        ({"adaptive_scale": 0.0}, "adaptive_scale=0.0"),
        ({"module_names": ["("]}, "module_names: '\\(' is no regular expression"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RMUConfig(report_to="none", **settings)


def test_an_adapter_that_is_elsewhere_is_refused(build):
    with pytest.raises(ValueError, match=r"The adapter trains nothing in the layers \[1, 2\]"):
        build(peft_config=lora(layers_to_transform=[0]))


def test_an_adapter_that_came_in_trained_is_refused_under_zero3(build, monkeypatch):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["down_proj"], task_type="CAUSAL_LM"))
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="Merge it first"):
        build(model=model)


def test_an_adapter_is_as_it_came_after_training(build):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(target_modules=["down_proj"], task_type="CAUSAL_LM"))
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    build(model=model).train()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
