# SPDX-License-Identifier: Apache-2.0
"""What is found by trying a model before the first step: constants, randomness, later tokens, padding."""

import copy
import math

import pytest
import torch
from conftest import lora, make_model, make_tokenizer, weights
from test_zoo_of_models import LIVE, assert_same_run, assert_starts_at_its_reference, pattern, run
from zoo import small

from hf_unlearn.models.loading import class_of
from hf_unlearn.training.dropout import has_dropout, without_dropout


# Dropout


def chances(model) -> list:
    return [
        (name, attribute, value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, float)
    ]


@pytest.mark.parametrize("name", ["gpt2", "opt", "falcon", "bert-decoder", "persimmon", "mixtral", "xglm", "gptj"])
def test_without_dropout_two_forwards_in_training_are_one(name):
    model = small(name, **({"router_jitter_noise": 0.1} if name == "mixtral" else {})).train()
    before, config = chances(model), copy.deepcopy(model.config)
    ids = torch.arange(5, 14)[None]

    def logits():
        return model(input_ids=ids, use_cache=False).logits

    assert not torch.equal(logits(), logits())
    assert has_dropout(model)
    with without_dropout(model):
        wanted = model.eval()(input_ids=ids, use_cache=False).logits
        model.train()
        for _ in range(3):
            assert torch.equal(logits(), wanted)
        assert model.config.to_dict() == config.to_dict(), "the config that is saved keeps its dropout"
    assert chances(model) == before
    assert all(module.config.to_dict() == config.to_dict() for module in model.modules() if hasattr(module, "config"))
    assert not torch.equal(logits(), logits())


def test_dropout_of_adapters_is_off_too_and_told(build, caplog):
    trainer = build(given={"peft_config": lora(lora_dropout=0.5)}, retain_loss="kl", max_steps=1)
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.append(has_dropout(module)))
    trainer.train()
    assert seen
    assert not any(seen)
    assert has_dropout(trainer.model)
    assert "Dropout is off in training: lora_dropout 0.5." in caplog.text


def test_dropout_may_stay(tmp_path, caplog):
    trainer = run(tmp_path, small("gpt2"), retain_loss="kl", disable_dropout=False, max_steps=1)
    assert trainer.state.log_history[0]["retain/loss"] > 1e-4
    assert "Dropout is off" not in caplog.text


def test_a_router_that_draws_in_training_is_told(tmp_path, caplog):
    run(tmp_path, small("phimoe", router_jitter_noise=1.0), retain_loss="kl", max_steps=1)
    assert "PhimoeForCausalLM computes other logits in training than in evaluation" in caplog.text


def test_randomness_of_no_known_name_is_told(tmp_path, caplog):
    model = make_model()
    norm = model.model.norm
    norm.register_forward_hook(
        lambda module, args, output: output * (1 + 0.1 * torch.rand(1)) if module.training else None
    )
    run(tmp_path, model, retain_loss="kl", max_steps=1)
    assert "LlamaForCausalLM computes other logits in training than in evaluation" in caplog.text


# Frozen layers


@pytest.mark.parametrize("name", ["embed_positions", "project_in"])
def test_what_trains_below_the_layers_is_found(name, tmp_path, caplog):
    model = small("opt-350m")
    chosen = {"trainable_modules": [name, pattern(model, 2)]}
    found = run(tmp_path, model, retain_loss="nll", **chosen)
    before = weights(small("opt-350m"))
    assert all(not torch.equal(before[n], w) for n, w in weights(found.model).items() if name in n)
    assert "States of the 2 frozen layers are computed at every step: something below them trains." in caplog.text
    assert_same_run(found, run(tmp_path, small("opt-350m"), retain_loss="nll", **chosen, **LIVE))


def test_noise_on_the_embeddings_is_not_lost(tmp_path, caplog):
    chosen = {"trainable_modules": [r"layers\.1\."], "retain_loss": "nll", "neftune_noise_alpha": 50.0}
    found = run(tmp_path, make_model(), **chosen)
    assert found.forward_path.prefix is None
    assert "they are random in training" in caplog.text
    assert_same_run(found, run(tmp_path, make_model(), **chosen, cache_frozen=False))


def test_layers_whose_states_are_not_all_that_is_read_are_computed(tmp_path, caplog):
    """As where layers share keys and values: the last layer adds what the first one left aside."""

    def sharing():
        model = make_model(layers=3)
        first, last = model.model.layers[0], model.model.layers[2]
        # Hooks of a replaced layer still run; those of a module inside it do not.
        first.mlp.register_forward_hook(lambda module, args, output: setattr(model, "aside", output.mean()))
        last.register_forward_hook(lambda module, args, output: output * (1 + 1e3 * model.aside))
        return model

    chosen = {"trainable_modules": [r"layers\.2\."], "retain_loss": "nll"}
    found = run(tmp_path, sharing(), **chosen)
    assert found.forward_path.prefix is None
    assert "the layers above compute something else from them" in caplog.text
    assert_same_run(found, run(tmp_path, sharing(), **chosen, cache_frozen=False))


def test_layers_above_that_miss_something_are_told(tmp_path, caplog):
    model = make_model(layers=3)
    first, last = model.model.layers[0], model.model.layers[2]
    aside = {}
    first.mlp.register_forward_hook(lambda module, args, output: aside.update(kv=output))
    last.register_forward_hook(lambda module, args, output: output + aside.pop("kv"))
    found = run(tmp_path, model, trainable_modules=[r"layers\.2\."], retain_loss="nll")
    assert found.forward_path.prefix is None
    assert "the layers above need more than states (KeyError: 'kv')" in caplog.text


def test_frozen_layers_below_reentrant_checkpoints(tmp_path):
    chosen = {"trainable_modules": [r"layers\.[12]\."], "retain_loss": "nll"}
    wanted = run(tmp_path, make_model(layers=3), **chosen, cache_frozen=False)
    checkpoints = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    found = run(tmp_path, make_model(layers=3), **chosen, **checkpoints)
    assert found.forward_path.prefix is not None
    assert_same_run(found, wanted)


def test_the_trial_draws_nothing_of_the_run(tmp_path):
    drawn = []
    for cache in (True, False):
        run(tmp_path, small("opt"), trainable_modules=["lm_head"], cache_frozen=cache, seed=5, max_steps=1)
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


# What is no causal language model


def test_padding_that_is_read_and_later_tokens_are_refused_before_anything_is_computed(tmp_path):
    from peft import LoraConfig

    for name, line in (("cpmant", "CpmAntForCausalLM reads padding"), ("bert", "BertLMHeadModel reads later tokens")):
        model = small(name)
        before = weights(model)
        with pytest.raises(ValueError, match=line):
            run(tmp_path, model, peft_config=None, retain_loss="kl")
        assert all(torch.equal(before[n], w) for n, w in weights(model).items())
    adapter = LoraConfig(target_modules=["query"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="BertLMHeadModel reads later tokens"):
        run(tmp_path, small("bert"), peft_config=adapter)


@pytest.mark.parametrize("given", ["weights", "autocast"])
def test_in_half_precision_another_shape_rounds_otherwise_and_that_is_no_reading(tmp_path, given):
    """SmolLM2 differs by 0.02 to 0.06 between 16 and 19 tokens; other pads of the same number change nothing."""
    half = {"bf16": True} if given == "autocast" else {}

    def model(hook):
        made = make_model().to(torch.bfloat16 if given == "weights" else torch.float32)
        made.model.embed_tokens.register_forward_hook(hook)
        return made

    def rounded(module, args, states):
        odd = (torch.arange(states.shape[-1]) % 2) * (states.shape[1] % 2)
        return (states * (1 + 0.05 * odd)).to(states.dtype)

    def read(module, args, states):
        return states + 0.2 * states[:, -3:-2]

    assert run(tmp_path, model(rounded), max_steps=1, **half).state.global_step == 1
    with pytest.raises(ValueError, match="reads padding"):
        run(tmp_path, model(read), **half)


def test_encoder_decoders_and_headless_models_are_refused(tmp_path):
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 100}  # fmt: skip
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
    for model in (
        BartForConditionalGeneration(BartConfig(**bart)),
        T5ForConditionalGeneration(T5Config(**t5)),
    ):
        name = type(model).__name__
        with pytest.raises(ValueError, match=f"{name} is an encoder-decoder model"):
            run(tmp_path, model)
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is an encoder-decoder model"):
            run(tmp_path, str(tmp_path / name))
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        run(tmp_path, make_model().model)
    # The decoder of Bart alone is a language model.
    assert run(tmp_path, small("bart"), max_steps=1).state.global_step == 1


def test_a_checkpoint_of_no_language_model_is_told_before_it_is_loaded(tmp_path):
    from transformers import CLIPConfig, ViTConfig

    for config in (ViTConfig(), CLIPConfig()):
        with pytest.raises(ValueError, match=f"is a {config.model_type}, of which transformers has no causal"):
            class_of(config)


# Mixtures of experts


def test_the_loss_of_a_router_is_left_out_of_evaluation_as_of_training(tmp_path, caplog):
    from hf_unlearn import GAConfig, GATrainer

    rows = [{"text": f"The cup {i} is here."} for i in range(4)]
    losses = {}
    for asked in (False, True):
        model = small("mixtral", output_router_logits=asked, router_aux_loss_coef=1.0)
        args = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        trainer = GATrainer(
            model=model,
            args=GAConfig(output_dir=str(tmp_path / "out"), **args),
            forget_dataset=rows,
            eval_dataset=rows,
            processing_class=make_tokenizer(),
        )
        losses[asked] = trainer.evaluate()["eval_loss"]
        assert model.config.output_router_logits == asked
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)
    assert math.isfinite(losses[True])
    assert "its auxiliary loss is left out" in caplog.text


def test_a_start_over_all_dropout(tmp_path):
    assert_starts_at_its_reference(run(tmp_path, small("gpt2", dropout=0.5), retain_loss="kl", max_steps=1))
