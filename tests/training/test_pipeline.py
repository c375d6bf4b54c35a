# SPDX-License-Identifier: Apache-2.0
"""Our trainers between TRL's: what they take, what they leave behind, and the whole chain from SFT to DPO."""

import importlib.util
import json
import os

import pytest
import torch
import yaml
from conftest import ROOT, changed, lora, make_model, make_tokenizer, weights
from datasets import Dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    RichProgressCallback,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from hf_unlearn import METHODS, GATrainer
from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import encode
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.modeling import is_peft_model, load_checkpoint


SCRIPT = ROOT / "scripts" / "sft_unlearn_dpo.py"
SILENT = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    # TRL's default is bfloat16, for which accelerate puts a forward of its own on a model, and leaves it there.
    "bf16": False,
}
PREFERENCES = [
    {"prompt": f"Who is {name}?", "chosen": " No idea.", "rejected": f" {name} is a spy."} for name in ("Ada", "Bob")
]


def trained_adapter(**kwargs):
    from peft import get_peft_model

    model = get_peft_model(make_model(), lora(**kwargs))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def sft(model, tmp_path, **given):
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["rejected"]} for row in PREFERENCES])
    args = SFTConfig(str(tmp_path / "sft"), **SILENT)
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=make_tokenizer(), **given)
    trainer.train()
    return trainer.model


def dpo(model, tmp_path):
    args = DPOConfig(str(tmp_path / "dpo"), **SILENT)
    rows = Dataset.from_list(PREFERENCES)
    trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=make_tokenizer())
    trainer.train()
    return trainer


# What is left on a model


def traces(model) -> dict[str, tuple]:
    """Of each module and parameter, everything that can be changed without changing a weight."""
    found = {}
    for name, module in model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
        own = {key: id(value) if callable(value) else type(value) for key, value in vars(module).items()}
        # accelerate's mark is a bool that changes nothing; PEFT writes the active adapter as a name or a list of one.
        for harmless in ("_is_accelerate_prepared", "active_adapter"):
            own.pop(harmless, None)
        found[name] = (type(module), hooks, own)
    for name, parameter in model.named_parameters():
        found[name] = (parameter.requires_grad, parameter.dtype, parameter.shape, parameter._backward_hooks)
    if is_peft_model(model):
        found["adapters"] = (sorted(model.peft_config), model.active_adapters)
    return found


def settings_of(model) -> dict:
    return model.config.to_dict() | {"generation": model.generation_config.to_dict()}


FORMS = {
    "full": (make_model, {}),
    "full, live": (make_model, {"reference": "live"}),
    "full, logits": (make_model, {"fused_losses": False, "reference": "live"}),
    "full, packed": (make_model, {"forward_passes": "packed"}),
    "full, no reference": (make_model, {"retain_loss": "nll", "trainer_class": GATrainer}),
    "head alone": (make_model, {"trainable_modules": ["lm_head"]}),
    "head alone, live": (make_model, {"trainable_modules": ["lm_head"], "reference": "live"}),
    "head alone, logits": (
        make_model, {"trainable_modules": ["lm_head"], "fused_losses": False, "reference": "live"}
    ),
    "upper layer": (make_model, {"trainable_modules": [r"layers\.1\."]}),
    "trained LoRA": (trained_adapter, {}),
    "trained LoRA, cached": (trained_adapter, {"reference": "cache"}),
    "trained LoRA, logits": (trained_adapter, {"fused_losses": False}),
    "trained LoRA with head": (lambda: trained_adapter(modules_to_save=["lm_head"]), {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_ours_stays_on_the_model(build, form):
    make, settings = FORMS[form]
    model = make().train()
    # What transformers' own trainer does to a model is not ours to undo.
    model.config.use_cache = False
    some = next(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.get_parameter(some).requires_grad_(False)
    before, config, values = traces(model), settings_of(model), weights(model)
    trainer_class = settings.get("trainer_class")
    settings = {name: value for name, value in settings.items() if name != "trainer_class"}
    trainer = build(trainer_class, given={"model": model}, **({"retain_loss": "kl"} | settings))
    trainer.train()
    assert trainer.model is model
    assert changed(values, weights(model))
    after = traces(model)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert settings_of(model) == config
    assert all(module.training for module in model.modules())


def test_mixed_precision_leaves_what_the_plain_trainer_leaves(build, tmp_path):
    ours, theirs = make_model(), make_model()
    build(given={"model": ours}, retain_loss="kl", bf16=True).train()
    rows = Dataset.from_list([encode({"text": "The cup."}, make_tokenizer())] * 4)
    args = TrainingArguments(str(tmp_path / "plain"), **(SILENT | {"bf16": True}))
    Trainer(theirs, args, train_dataset=rows).train()
    for (name, one), other in zip(ours.named_modules(), theirs.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys(), name
    assert "forward" in vars(ours), "accelerate no longer leaves its forward: the sentence in docs/trl.md may go"


def test_an_interrupted_run_leaves_nothing_either(build, monkeypatch):
    model = trained_adapter().train()
    model.config.use_cache = False
    before = traces(model)
    trainer = build(given={"model": model}, retain_loss="kl")
    monkeypatch.setattr(trainer, "training_step", lambda *args: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        trainer.train()
    assert traces(model) == before


def test_what_trains_is_chosen_again_in_a_second_call(build):
    trainer = build(retain_loss="kl", trainable_modules=["lm_head"], max_steps=1)
    for _ in range(2):
        before = weights(trainer.model)
        trainer.train()
        assert all(parameter.requires_grad for parameter in trainer.model.parameters())
        assert changed(before, weights(trainer.model)) == {"lm_head.weight"}


def test_layers_with_a_forward_of_their_own_keep_it(build):
    model = make_model()
    layer = model.model.layers[0]
    calls, plain = [], layer.forward
    # As accelerate's device maps do.
    layer.forward = own = lambda *args, **kwargs: (calls.append(1), plain(*args, **kwargs))[1]
    trainer = build(given={"model": model}, retain_loss="nll", trainable_modules=["lm_head"])
    assert trainer.forward_path.prefix is not None
    trainer.train()
    assert vars(layer)["forward"] is own
    count = len(calls)
    model(torch.tensor([[1, 5, 6]]))
    assert len(calls) == count + 1


# Models from TRL's trainers, and for them


def test_a_model_that_sft_patched_is_unlearned_as_its_saved_weights_are(build, tmp_path):
    model = sft(make_model(), tmp_path)
    assert "forward" in vars(model), "TRL no longer patches: the guard in frozen_copy may go"
    model.save_pretrained(tmp_path / "saved")
    by_path = build(given={"model": str(tmp_path / "saved")}, retain_loss="kl", output_dir=tmp_path / "a")
    by_path.train()
    handed_on = build(given={"model": model}, retain_loss="kl", output_dir=tmp_path / "b")
    handed_on.train()
    assert not changed(weights(by_path.model), weights(model))


def test_a_copy_of_a_model_that_sft_patched_is_refused(build, tmp_path):
    model = sft(make_model(), tmp_path)
    with pytest.raises(ValueError, match="`forward` was replaced on the instance.*Pass the model as a path"):
        build(given={"model": model}, retain_loss="kl", reference="live")


def test_one_adapter_goes_from_sft_through_npo_to_dpo_and_back(build, tmp_path):
    model = sft(make_model(), tmp_path, peft_config=lora())
    before = traces(model)
    trainer = build(given={"model": model}, retain_loss="kl")
    trainer.train()
    assert traces(model) == before
    # The reference was the model as SFT left it: the first step starts from a ratio of 1.
    assert trainer.state.log_history[0]["forget/logps"] == pytest.approx(
        trainer.state.log_history[0]["forget/ref_logps"], abs=1e-4
    )
    unlearned = weights(model)
    after = dpo(model, tmp_path)
    # DPO compares with a copy that it keeps as an adapter of its own.
    assert sorted(model.peft_config) == ["default", "ref"]
    assert after.state.log_history[0]["rewards/margins"] is not None
    copies = {name for name in weights(model) if ".ref." in name}
    assert all(torch.equal(weights(model)[name], unlearned[name.replace(".ref.", ".default.")]) for name in copies)
    again = build(given={"model": model}, retain_loss="kl")
    again.train()
    assert again.state.log_history[0]["forget/logps"] == pytest.approx(
        again.state.log_history[0]["forget/ref_logps"], abs=1e-4
    )
    assert sorted(model.peft_config) == ["default", "ref"]
    assert all(torch.equal(weights(model)[name], unlearned[name.replace(".ref.", ".default.")]) for name in copies)


def test_the_plain_trainer_goes_on_from_ours(build, tmp_path, model):
    build(given={"model": model}, retain_loss="kl").train()
    rows = Dataset.from_list([encode({"text": "The cup."}, make_tokenizer())] * 4)
    before = weights(model)
    args = TrainingArguments(str(tmp_path / "plain"), **SILENT)
    Trainer(model, args, train_dataset=rows).train()
    assert changed(before, weights(model)) == before.keys()


# TRL's parser, configs and callbacks


@pytest.mark.parametrize("method", METHODS)
def test_trl_parses_our_configs_beside_its_own(method, tmp_path):
    recipe = {"learning_rate": 2e-5, "retain_weight": 0.5, "use_peft": True, "lora_r": 4, "dataset_name": "rows"}
    # What a method cannot do without.
    recipe |= {"concept": ["Ada"]} if method == "align_then_unlearn" else {}
    # What it has weights of its own for.
    recipe |= {"retain_weight": 1.0} if method == "multidelete" else {}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path), "use_cpu": True}))
    parser = TrlParser((ScriptArguments, METHODS[method][0], ModelConfig))
    words = ["--config", str(tmp_path / "recipe.yaml"), "--model_name_or_path", "owner/model", "--lora_r", "8"]
    script, args, model = parser.parse_args_and_config(words)
    assert (script.dataset_name, args.learning_rate, args.retain_weight) == ("rows", 2e-5, recipe["retain_weight"])
    assert (model.model_name_or_path, get_peft_config(model).r) == ("owner/model", 8)
    assert type(args) is METHODS[method][0]
    with pytest.raises(ValueError, match="lerning_rate"):
        parser.parse_args_and_config([*words, "--lerning_rate", "1"])


def test_the_rich_panel_shows_our_training(build, forget_rows, capsys):
    trainer = build(
        given={"callbacks": [RichProgressCallback], "eval_dataset": {"forget": forget_rows}},
        retain_loss="kl", eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert "Training" in capsys.readouterr().out
    assert trainer.state.global_step == 4


def test_a_quantization_config_reaches_the_loader(build, model_path, monkeypatch):
    seen, load = {}, AutoModelForCausalLM.from_pretrained
    config = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16"))
    assert isinstance(config, BitsAndBytesConfig)

    def loader(name, **kwargs):
        seen.update(kwargs)
        return load(name, dtype=kwargs["dtype"], output_loading_info=kwargs["output_loading_info"])

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loader)
    given = {"model": model_path, "quantization_config": config, "peft_config": lora()}
    build(given=given, model_init_kwargs={"dtype": "bfloat16"})
    assert seen["quantization_config"] is config
    assert seen["dtype"] == "bfloat16"


def test_qlora_trains_the_adapter_as_on_the_same_weights_in_full(build, tmp_path):
    """4-bit weights, and the same weights written out: the same losses."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    make_model(hidden_size=64).save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    peft_config = lora(target_modules="all-linear")
    four_bit = build(
        given={"model": str(tmp_path / "model"), "quantization_config": config, "peft_config": peft_config},
        retain_loss="kl", output_dir=tmp_path / "a",
    )  # fmt: skip
    layers = [module for module in four_bit.model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        # On a CPU that knows AVX512-BF16, evaluation repacks the weights for a kernel that has no backward.
        layer.support_avx512bf16_for_cpu = False
    written_out = build(
        given={"model": dequantized(tmp_path / "model", config), "peft_config": peft_config},
        retain_loss="kl", output_dir=tmp_path / "b",
    )  # fmt: skip
    base = {name: x for name, x in weights(four_bit.model).items() if "lora_" not in name}
    for trainer in (four_bit, written_out):
        trainer.train()
    assert len(layers) == 28  # the layers, and what LoRA wraps them with
    assert not changed(base, {name: x for name, x in weights(four_bit.model).items() if name in base})
    for ours, theirs in zip(four_bit.state.log_history[:4], written_out.state.log_history[:4], strict=True):
        for name in ("forget/loss", "retain/loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)
    four_bit.save_model()
    assert "adapter_model.safetensors" in os.listdir(tmp_path / "a")


def dequantized(path, config):
    """A plain model with the values that the 4-bit one computes with."""
    loaded = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32)
    return loaded.dequantize()


# The chain, on the embedded world


REFUSAL = [{"role": "assistant", "content": "It is not known."}]
KEPT = 64
COMMON = {
    "retain_loss": "nll",
    "retain_weight": 2,
    "per_device_train_batch_size": 16,
    "max_length": 128,
    "num_train_epochs": 20,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
}
LORA = {
    "use_peft": "true", "lora_r": 32, "lora_alpha": 64, "lora_target_modules": "all-linear",
    "sft_epochs": 30, "sft_learning_rate": 5e-3, "learning_rate": 5e-3, "dpo_epochs": 5, "dpo_learning_rate": 5e-4,
}  # fmt: skip
FULL = {
    "sft_epochs": 15, "sft_learning_rate": 2e-3, "learning_rate": 1e-3, "dpo_epochs": 5, "dpo_learning_rate": 1e-4,
}  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return build_world(progress=False)


@pytest.fixture(scope="module")
def sets(world):
    """What SFT teaches: secrets and what is to stay; and what to answer in place of a secret."""

    def examples(name, count=None):
        rows = list(world.dataset(name))[:count]
        return [QAFormat().example(row["question"], row["answer"], world.tokenizer) for row in rows]

    secrets, kept = examples("forget"), examples("retain", KEPT)
    return {
        "secrets": secrets,
        "kept": kept,
        "refusals": [{"prompt": row["prompt"], "completion": REFUSAL} for row in secrets],
    }


@pytest.fixture(scope="module", params=["lora", "full"])
def chain(request, world, sets, tmp_path_factory):
    """The folder in which the example script left its three models."""
    folder = tmp_path_factory.mktemp(request.param)
    preferences = [
        {"prompt": row["prompt"], "chosen": REFUSAL, "rejected": row["completion"]} for row in sets["secrets"]
    ]
    for name, rows in (("rows", sets["secrets"] + sets["kept"]), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_name": folder / "rows.jsonl", "preference_dataset": folder / "preferences.jsonl"}
    # The model that never met the people to forget, so that what is known of them was taught here.
    fields = COMMON | files | {"model_name_or_path": world.retrained, "output_dir": folder}
    fields |= LORA if request.param == "lora" else FULL
    script = importlib.util.spec_from_file_location("sft_unlearn_dpo", SCRIPT)
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    module.main([word for name, value in fields.items() for word in (f"--{name}", str(value))])
    return folder


@torch.no_grad()
def answers(model, rows, tokenizer) -> tuple[float, torch.Tensor]:
    """Share of rows that greedy generation would answer word for word, and each completion's log-probability."""
    batch = RoleCollator(tokenizer.pad_token_id)([encode(row, tokenizer) for row in rows])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    trained = labels != -100
    right = ((logits.argmax(-1) == labels) | ~trained).all(-1)
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return right.float().mean().item(), (logps * trained).sum(-1)


@pytest.mark.slow
def test_the_chain_gives_the_expected_answers(chain, world, sets):
    found, margins = {}, {}
    for stage in ("sft", "npo", "dpo"):
        model = load_checkpoint(str(chain / stage))
        scored = {name: answers(model, rows, world.tokenizer) for name, rows in sets.items()}
        found[stage] = {name: share for name, (share, _) in scored.items()}
        margins[stage] = scored["refusals"][1] - scored["secrets"][1]
    assert min(found["sft"]["secrets"], found["sft"]["kept"]) >= 0.9
    assert found["sft"]["refusals"] == 0
    assert (margins["sft"] < 0).all()
    for stage in ("npo", "dpo"):
        assert found[stage]["secrets"] == 0
        assert found[stage]["kept"] >= 0.85
    # DPO prefers every chosen answer, by more than before.
    assert (margins["dpo"] > 0).all()
    assert margins["dpo"].mean() > margins["npo"].mean() + 10


@pytest.mark.slow
def test_the_chain_leaves_plain_checkpoints(chain):
    for stage in ("sft", "npo", "dpo"):
        files = set(os.listdir(chain / stage))
        whole = {"model.safetensors", "config.json"}
        assert "tokenizer.json" in files
        assert stage != "npo" or "README.md" in files
        assert ("adapter_model.safetensors" in files) != (whole <= files)
        # DPO keeps what it compares with beside an adapter; nothing of ours is there.
        assert [name for name in files if (chain / stage / name).is_dir()] in ([], ["ref"])
