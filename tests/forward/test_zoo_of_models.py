# SPDX-License-Identifier: Apache-2.0
"""Every causal architecture of transformers: each way to compute a step gives the same numbers, or one line says why
it cannot be taken. All dropout of the models is on."""

import math
import os

import pytest
from conftest import make_args, make_tokenizer, weights
from zoo import small

from hf_unlearn import METHODS
from hf_unlearn.models.activations import decoder_layers


# Rows of different lengths, so that there is padding.
FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABC")]
RETAIN = [{"text": f"The {'big ' * (4 - i)}cup {i}."} for i in range(4)]
LIVE = {"fused_losses": False, "reference": "live", "cache_frozen": False}

# What comes of an architecture: all forms agree and states below the first trained layer are kept; or states are not,
# or it is refused, each with a part of the line that says so.
KEPT = "kept"
BOTH_SIDES = "reads later tokens: another last token changes what it predicts before it"
PADDING = "reads padding"
NO_STATES = "they do not return states of every token"
NO_LIST = "the model's layers are not one list"
# By default the families that users bring, and one of each kind that once failed; the others are slow in sum.
EXPECTED = {
    "llama": KEPT, "qwen2": KEPT, "qwen3": KEPT, "mistral": KEPT, "mixtral": KEPT, "gemma2": KEPT, "gemma3_text": KEPT,
    "phi": KEPT, "phi3": KEPT, "gpt2": KEPT, "gpt_neo": KEPT, "gpt_neox": KEPT, "gptj": KEPT, "codegen": KEPT,
    "opt": KEPT, "opt-350m": KEPT, "bloom": KEPT, "falcon": KEPT, "mpt": KEPT, "rwkv": KEPT, "mamba": KEPT,
    "jamba": KEPT, "bert-decoder": KEPT, "deepseek_v4": NO_STATES, "bert": BOTH_SIDES, "cpmant": PADDING,
}  # fmt: skip
# The others that can be made this small by their config alone.
WIDE = {
    **dict.fromkeys(
        [
            "roberta-decoder",
            "electra-decoder",
            "mamba2",
            "falcon_mamba",
            "youtu",
            "axk1",
            "deepseek_v3",
            "afmoe",
            "apertus",
            "arcee",
            "aria_text",
            "axk2",
            "bailing_hybrid",
            "bamba",
            "beam",
            "biogpt",
            "bitnet",
            "cohere",
            "cohere2",
            "cohere2_moe",
            "ctrl",
            "cwm",
            "deepseek_v2",
            "deepseek_v32",
            "doge",
            "dots1",
            "ernie4_5",
            "ernie4_5_moe",
            "exaone4",
            "exaone_moe",
            "flex_olmo",
            "flint",
            "gemma",
            "gemma4_unified_text",
            "glm",
            "glm4",
            "glm4_moe",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "gpt-sw3",
            "gpt_bigcode",
            "gpt_neox_japanese",
            "gpt_oss",
            "granite",
            "granite_swa",
            "granitemoe",
            "granitemoe_swa",
            "granitemoehybrid",
            "granitemoeshared",
            "helium",
            "hunyuan_v1_dense",
            "hunyuan_v1_moe",
            "hy_v3",
            "hyperclovax",
            "inkling2_text",
            "inkling_text",
            "internlm3",
            "iquestcoder",
            "jais2",
            "jetmoe",
            "kolibri1",
            "laguna",
            "lfm2",
            "lfm3",
            "llama4_text",
            "mellum",
            "minicpm3",
            "minimax",
            "minimax_m2",
            "minimax_m3_vl_text",
            "ministral",
            "ministral3",
            "modernbert-decoder",
            "moshi",
            "nanochat",
            "nemotron",
            "olmo",
            "olmo2",
            "olmo3",
            "olmo_hybrid",
            "olmoe",
            "persimmon",
            "qwen2_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen3_moe",
            "qwen3_next",
            "recurrent_gemma",
            "seed_oss",
            "smollm3",
            "solar_open",
            "stablelm",
            "starcoder2",
            "trocr",
            "vaultgemma",
            "xglm",
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "whisper",
            "openai-gpt",
            "xlstm",
        ],
        KEPT,
    ),
    **dict.fromkeys(
        [
            "xlnet",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roformer",
            "xlm",
            "xlm-roberta",
            "xlm-roberta-xl",
        ],
        BOTH_SIDES,
    ),
    "hrm_text": NO_LIST,
    "hy_v4": NO_STATES,
}
LORA = "all-linear"
# PEFT refuses, or breaks on, some modules.
ADAPTED = {
    "deepseek_v4": None,
    "mamba": ["in_proj", "x_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    # A router that returns more than one tensor.
    "llama4_text": ["q_proj", "v_proj"],
}


def run(tmp_path, model, method="npo", peft_config=None, **settings):
    config, trainer_class = METHODS[method]
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "report_to": "none", **settings}
    trainer = trainer_class(
        model=model,
        args=make_args(config, tmp_path / "out", **settings),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def assert_starts_at_its_reference(trainer):
    entry = trainer.state.log_history[0]
    assert entry["forget/loss"] == pytest.approx(2 * math.log(2) / trainer.args.beta, rel=1e-4)
    assert entry["retain/loss"] == pytest.approx(0, abs=1e-5)


def assert_same_run(found, wanted):
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)
    after = weights(wanted.model)
    for name, weight in weights(found.model).items():
        assert weight.isfinite().all()
        assert (weight - after[name]).abs().max() < 1e-4 + 1e-2 * after[name].abs().max(), name


def pattern(model, number: int) -> str:
    """What the parameters of a layer are called."""
    layers = decoder_layers(model)
    name = next(name for name, module in model.named_modules() if module is layers)
    return rf"^{name}\.{number}\."


def check(name: str, expected: str, tmp_path, caplog) -> None:
    model = small(name)
    if expected in (BOTH_SIDES, PADDING):
        with pytest.raises(ValueError, match=expected):
            run(tmp_path, model, retain_loss="kl")
        return
    layers = decoder_layers(model)
    chosen = ["lm_head|embed_out"] if layers is None else [pattern(model, len(layers) - 1)]
    # Fused, beside a reference on disk; over logits, beside a second model.
    fused = run(tmp_path, model, retain_loss="kl")
    plain = run(tmp_path, small(name), retain_loss="kl", **LIVE)
    assert fused.forward_path.fused
    assert fused.reference.name == "cache"
    for trainer in (fused, plain):
        assert_starts_at_its_reference(trainer)
    assert_same_run(fused, plain)
    if (targets := ADAPTED.get(name, LORA)) is not None:
        from peft import LoraConfig

        adapter = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        assert_starts_at_its_reference(run(tmp_path, small(name), peft_config=adapter, retain_loss="kl", max_steps=1))
    above = run(tmp_path, small(name), retain_loss="kl", trainable_modules=chosen)
    whole = run(tmp_path, small(name), retain_loss="kl", trainable_modules=chosen, cache_frozen=False)
    assert_starts_at_its_reference(above)
    assert_same_run(above, whole)
    assert (above.forward_path.prefix is not None) == (expected == KEPT)
    assert expected == KEPT or expected in caplog.text
    steering = {"layer_id": 1, "retain_weight": 10.0, "max_steps": 2}
    if expected in (NO_STATES, NO_LIST):
        with pytest.raises(ValueError, match="not one (state|list)"):
            run(tmp_path, small(name), "rmu", module_names=["weight"], **steering)
        return
    steering["trainable_modules"] = [pattern(model, 1)]
    stopped = run(tmp_path, small(name), "rmu", **steering)
    assert stopped.forward_path.prefix is not None
    assert_same_run(stopped, run(tmp_path, small(name), "rmu", **steering, **LIVE))


@pytest.mark.parametrize("name", EXPECTED)
def test_every_form_of_a_step_gives_the_same_numbers(name, tmp_path, caplog):
    check(name, EXPECTED[name], tmp_path, caplog)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HF_UNLEARN_WIDE_ZOO"), reason="the wide table: set HF_UNLEARN_WIDE_ZOO=1")
@pytest.mark.parametrize("name", WIDE)
def test_every_other_architecture_too(name, tmp_path, caplog):
    check(name, WIDE[name], tmp_path, caplog)
