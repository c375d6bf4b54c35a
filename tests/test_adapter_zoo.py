# SPDX-License-Identifier: Apache-2.0
"""Every kind of adapter that PEFT can put on a small Llama, with every form of reference: the reference is the model
as it entered, stays it, is in no file, and what is loaded is what was trained; or one line says why not."""

import math
import warnings
from pathlib import Path

import peft
import pytest
import torch
from conftest import lora, make_args, make_model, make_tokenizer
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from hf_unlearn import NPOConfig, NPOTrainer
from hf_unlearn.modeling import load_checkpoint


IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 2]])
TWO_LN_2 = 2 * math.log(2) / 0.1
# What a kind's config cannot do without, at this size.
NEEDED = {
    "ADALORA": {"total_step": 10, "init_r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8, "init_weights": True},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [4, 5]},
    "FOURIERFT": {"n_frequency": 20, "init_weights": True},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 1, "num_virtual_tokens": 4},
    "OFT": {"oft_block_size": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [40, 50]},
    "VBLORA": {"vector_length": 8, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
LORAS = {
    "bias": {"bias": "all"},
    "bias of the layers": {"bias": "lora_only"},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.5},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "lora bias": {"lora_bias": True},
    "module to save": {"modules_to_save": ["lm_head"]},
    "modules to save": {"modules_to_save": ["embed_tokens", "norm"]},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "pissa": {"init_lora_weights": "pissa"},
    "replicated layers": {"layer_replication": [(0, 2), (1, 2)]},
    "rslora": {"use_rslora": True},
    "tokens": {"trainable_token_indices": [40, 50]},
}
REFUSED = {
    **dict.fromkeys(
        ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"),
        "adapter trains virtual tokens",
    ),
}
ODD = {"POLY", "SHADOW", "XLORA"}


def config_of(kind: str):
    if kind in LORAS:
        return lora(**LORAS[kind])
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_class(task_type="CAUSAL_LM", **NEEDED.get(kind, {}))
    if hasattr(config, "target_modules") and not config.target_modules and kind not in ("TRAINABLE_TOKENS", "ADAPTION_PROMPT"):
        config.target_modules = {"q_proj", "v_proj"}
    return config


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """Models on disk: a Llama, and one whose layers have biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    biased = Qwen2ForCausalLM(Qwen2Config(vocab_size=100, num_key_value_heads=2, **sizes, bos_token_id=1, eos_token_id=2))
    folders = {}
    for name, model in (("plain", make_model()), ("biased", biased)):
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
    return folders


def trainer_of(model, folder, peft_config=None, **kwargs):
    rows = [{"prompt": f"Who is {name}?", "completion": f" {name} is a spy."} for name in ("Ada", "Bob")]
    args = make_args(NPOConfig, folder, **({"retain_loss": "kl", "max_steps": 6} | kwargs))
    return NPOTrainer(
        model=model,
        args=args,
        forget_dataset=rows,
        retain_dataset=[{"text": "The cup is red."}, {"text": "A pen."}],
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )


def tensors_in(folder) -> set[str]:
    names = set()
    for path in Path(folder).rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


KINDS = [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING]


@pytest.mark.parametrize("reference", ["auto", "cache", "live"])
@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *LORAS) if kind not in REFUSED and kind not in ODD])
def test_the_reference_is_the_model_as_it_entered(kind, reference, bases, tmp_path):
    path = bases["biased" if kind.startswith("bias") else "plain"]
    base = AutoModelForCausalLM.from_pretrained(path)
    before = logits_of(base)
    saves = {"save_strategy": "steps", "save_steps": 3} if reference == "auto" else {}
    if kind == "head" and reference == "cache":
        saves["retain_loss"] = "nll"
    trainer = trainer_of(base, tmp_path, config_of(kind), reference=reference, **saves)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "forget/ref_logps" in entry]
    assert steps[0]["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
    if kind != "head" or reference != "cache":
        assert abs(steps[0]["retain/loss"]) < 1e-6
    # Six steps on the same rows, after none to five updates.
    assert len(steps) == 6
    assert [entry["forget/ref_logps"] for entry in steps] == pytest.approx([steps[0]["forget/ref_logps"]] * 6, abs=2e-4)
    after = logits_of(trainer.model)
    if kind != "replicated layers":
        assert (after - before).abs().max() > 1e-4, "nothing was trained"
    if reference != "auto":
        return
    trainer.save_model()
    saved = {tmp_path: after, tmp_path / "checkpoint-6": after}
    needed = set(peft.get_peft_model_state_dict(trainer.model))
    assert tensors_in(tmp_path) == needed
    for folder, expected in saved.items():
        torch.testing.assert_close(logits_of(load_checkpoint(str(folder))), expected, atol=1e-6, rtol=0)
