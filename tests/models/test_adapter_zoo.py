# SPDX-License-Identifier: Apache-2.0
"""Every kind of adapter that PEFT can put on a small Llama, with every form of reference: the reference is the model
as it entered and stays it, nothing of it is in a file, and what is loaded is what was trained; or one line says why
not."""

import copy
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


IDS = torch.tensor([[1, 40, 77, 60, 70], [1, 41, 51, 61, 2]])
TWO_LN_2 = 2 * math.log(2) / 0.1
# What a kind's config cannot do without, at this size; and a start at the model, where that is no default.
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
    "TRAINABLE_TOKENS": {"token_indices": [77, 87]},
    "VBLORA": {"vector_length": 8, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
    "XLORA": {"hidden_size": 32, "adapters": {}},
}
NO_TARGETS = ("ADAPTION_PROMPT", "SHADOW", "TRAINABLE_TOKENS", "XLORA")
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
    "no start at the model": {"init_lora_weights": False},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "pissa": {"init_lora_weights": "pissa"},
    "replicated layers": {"layer_replication": [(0, 2), (1, 2)]},
    "rslora": {"use_rslora": True},
    "tokens": {"trainable_token_indices": [77, 87]},
    "corda": {"init_lora_weights": "corda"},
    "pissa by chance": {"init_lora_weights": "pissa_niter_4"},
}
VIRTUAL = "adapter trains virtual tokens before the rows"
REFUSED = {
    **dict.fromkeys(("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"), VIRTUAL),
    "P_TUNING": VIRTUAL,
    "corda": "init_lora_weights='corda' takes a part of the model's weights into the adapter",
    "pissa by chance": "init_lora_weights='pissa_niter_4' takes a part of the model's weights into the adapter",
    # PEFT's own words: one wants a column that rows do not have, the other adapters to choose among.
    "POLY": "task_ids should not be None",
    "XLORA": "`use_cache` must be False",
}
REFUSED_LIVE = {"ADAPTION_PROMPT": "The model's `forward` was replaced on the instance"}
# The adapter moves the model before any update: the reference is the model without it, as it was given.
ELSEWHERE = ("UNILORA", "VBLORA", "no start at the model")
KINDS = [*(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING), *LORAS]


def config_of(kind: str):
    if kind in LORAS:
        return lora(**LORAS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        config = config_class(task_type="CAUSAL_LM", **NEEDED.get(kind, {}))
    if hasattr(config, "target_modules") and not config.target_modules and kind not in NO_TARGETS:
        config.target_modules = {"q_proj", "v_proj"}
    return config


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """Models on disk: a Llama, and one whose layers have biases, which are not 0."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    biased = Qwen2ForCausalLM(Qwen2Config(vocab_size=100, num_key_value_heads=2, bos_token_id=1, **sizes))
    folders = {}
    for name, model in (("plain", make_model()), ("biased", biased)):
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(autouse=True)
def _no_card(monkeypatch):
    # Most of the time of a small run, and no part of this.
    monkeypatch.setattr("hf_unlearn.training.trainer.write_model_card", lambda *given: None)


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
    """Names of the tensors in all files below a folder."""
    names = set()
    for path in Path(folder).rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def check_steps(kind: str, trainer, entered) -> None:
    """Every step is on the same rows; the first comes before any update."""
    steps = [entry for entry in trainer.state.log_history if "forget/ref_logps" in entry]
    assert len(steps) == trainer.args.max_steps
    if kind not in ELSEWHERE:
        assert steps[0]["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
        if trainer.args.retain_loss == "kl":
            assert abs(steps[0]["retain/loss"]) < 1e-6
    if kind != "replicated layers":
        batch = trainer.data_collator([trainer.train_dataset[position] for position in (0, 1)])
        rows = {name: values[:2] for name, values in batch.items() if name != "role"}
        said = trainer.forward_path.reference(entered.eval(), {"forget": rows})["forget"].token_logps.sum().item() / 2
        assert steps[0]["forget/ref_logps"] == pytest.approx(said, abs=2e-4)
    assert [entry["forget/ref_logps"] for entry in steps] == pytest.approx(
        [steps[0]["forget/ref_logps"]] * len(steps), abs=2e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_or_swapped_and_saved(kind, bases, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(bases["biased" if kind.startswith("bias") else "plain"])
    entered, before = copy.deepcopy(base), logits_of(base)
    if kind in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[kind]) as error:
            trainer_of(base, tmp_path, config_of(kind)).train()
        assert "\n" not in str(error.value)
        return
    trainer = trainer_of(base, tmp_path, config_of(kind))
    assert trainer.reference.name == "adapter"
    trainer.train()
    check_steps(kind, trainer, entered)
    after = logits_of(trainer.model)
    assert (after - before).abs().max() > 1e-4, "nothing was trained"
    trainer.save_model()
    assert tensors_in(tmp_path) == set(peft.get_peft_model_state_dict(trainer.model))
    torch.testing.assert_close(logits_of(load_checkpoint(str(tmp_path))), after, atol=1e-6, rtol=0)


# How these come to the model before training differs in what the adapter does to it.
OFTEN = ("LN_TUNING", "LORA", "VBLORA", "bias", "dropout", "head", "modules to save", "no start at the model", "pissa")


@pytest.mark.parametrize("reference", ["cache", "live"])
@pytest.mark.parametrize("kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_kept_on_disk_or_in_a_second_model(kind, reference, bases, tmp_path):
    if kind in REFUSED:
        pytest.skip("refused with every form")
    base = AutoModelForCausalLM.from_pretrained(bases["biased" if kind.startswith("bias") else "plain"])
    entered = copy.deepcopy(base)
    # An adapter on the head leaves no plain head to keep, so only log-probabilities are.
    settings = {"retain_loss": "nll"} if (kind, reference) == ("head", "cache") else {}
    if reference == "live" and kind in REFUSED_LIVE:
        with pytest.raises(ValueError, match=REFUSED_LIVE[kind]):
            trainer_of(base, tmp_path, config_of(kind), reference=reference)
        return
    trainer = trainer_of(base, tmp_path, config_of(kind), reference=reference, max_steps=2, **settings)
    assert trainer.reference.name == reference
    trainer.train()
    check_steps(kind, trainer, entered)
