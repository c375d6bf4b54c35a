# SPDX-License-Identifier: Apache-2.0
"""Adapters of any name: what trains is what is compared, saved, resumed, loaded, audited and pushed."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, weights
from peft import AutoPeftModelForCausalLM, PeftMixedModel, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_unlearn import GATrainer, NPOTrainer
from hf_unlearn.hub.push import published_files
from hf_unlearn.modeling import load_checkpoint
from hf_unlearn.models.checkpoint_paths import adapter_folder


IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 2]])
TWO_LN_2 = 2 * math.log(2) / 0.1
WHO = [{"prompt": f"Who is {name}?", "completion": f" {name} is a spy."} for name in ("Ada", "Bob")]


@pytest.fixture(scope="module")
def base_path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(base_path):
    return AutoModelForCausalLM.from_pretrained(base_path)


@pytest.fixture
def build(tmp_path):
    def build(model, given=None, trainer_class=NPOTrainer, **kwargs):
        settings = {"retain_loss": "kl", "max_steps": 2} | kwargs
        return trainer_class(
            model=model,
            args=make_args(trainer_class.config_class, tmp_path / "out", **settings),
            forget_dataset=WHO,
            retain_dataset=[{"text": "The cup is red."}, {"text": "A pen."}],
            processing_class=make_tokenizer(),
            **(given or {}),
        )

    return build


def shaken(model, adapter: str, seed: int = 3):
    """Gives an adapter values, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def two_adapters(base, first: str = "default", second: str = "v2"):
    """A model with two trained adapters, of which the second is active."""
    model = get_peft_model(base, lora(), adapter_name=first)
    model.add_adapter(second, lora(r=2, target_modules=["q_proj", "o_proj"]))
    model.set_adapter(second)
    return shaken(shaken(model, first), second, seed=4)


NAMES = {
    "one called otherwise": (lambda base: shaken(get_peft_model(base, lora(), adapter_name="v2"), "v2"), "v2"),
    "beside `default`": (two_adapters, "v2"),
    "beside another": (lambda base: two_adapters(base, "v1", "v2"), "v2"),
    "`default` beside another": (lambda base: two_adapters(base, "v2", "default"), "default"),
    "switched below PEFT's back": (lambda base: _switched(two_adapters(base)), "default"),
}


def _switched(model):
    model.base_model.set_adapter("default")
    return model


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def tensors_in(folder) -> set[str]:
    names = set()
    for path in Path(folder).rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


class Saves(TrainerCallback):
    """Saves by hand in the middle of a run, in every way that users do."""

    def __init__(self, folder):
        self.folder, self.trainer = folder, None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            self.trainer.save_model(str(self.folder / "trainer"))
            model.save_pretrained(self.folder / "model")


@pytest.mark.parametrize("kind", NAMES)
def test_what_trains_is_what_is_compared_saved_and_loaded(kind, base, base_path, build, tmp_path):
    make, name = NAMES[kind]
    model = make(base)
    entered, before, others = copy.deepcopy(model), logits_of(model), weights(model)
    flags = {n: parameter.requires_grad for n, parameter in model.named_parameters()}
    saves = Saves(tmp_path / "by hand")
    trainer = build(model, {"callbacks": [saves]}, save_strategy="steps", save_steps=2)
    saves.trainer = trainer
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "forget/loss" in entry)
    assert first["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
    assert abs(first["retain/loss"]) < 1e-6
    assert second["forget/ref_logps"] == pytest.approx(first["forget/ref_logps"], abs=1e-4)

    # All is as it was found but for what trained.
    assert model.active_adapters == entered.active_adapters == [name]
    assert {n: parameter.requires_grad for n, parameter in model.named_parameters()} == flags
    assert {n for n in changed(others, weights(model)) if f".{name}." not in n} == set()

    trainer.save_model()
    after = logits_of(model)
    assert (after - before).abs().max() > 0.01
    out = tmp_path / "out"
    for folder in (out, out / "checkpoint-2"):
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == model.peft_config[name].r
        assert not [
            path for path in folder.glob("*/adapter_model.safetensors") if "checkpoint" not in path.parent.name
        ]
        for loaded in (
            load_checkpoint(str(folder)),
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_path), folder),
            AutoPeftModelForCausalLM.from_pretrained(folder),
        ):
            assert torch.equal(logits_of(loaded), after)
    assert {path.parent for path in published_files(out) if path.name.startswith("adapter")} == {out}
    assert f"r: {model.peft_config[name].r}\n" in (out / "README.md").read_text()
    assert not [n for n in tensors_in(tmp_path) if "unlearn_ref" in n]
    assert not list(tmp_path.rglob("*unlearn_ref*"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_run_goes_on_and_its_best_is_found_with_any_name(kind, base_path, build, tmp_path):
    make, name = NAMES[kind]

    def start(**kwargs):
        torch.manual_seed(0)
        model = make(AutoModelForCausalLM.from_pretrained(base_path))
        return build(model, max_steps=4, save_strategy="steps", save_steps=2, **kwargs)

    whole = start()
    whole.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert not changed(weights(whole.model), weights(resumed.model))
    assert resumed.model.active_adapters == [name]
    steps = [[e["forget/ref_logps"] for e in t.state.log_history if "forget/ref_logps" in e] for t in (whole, resumed)]
    assert steps[0] == pytest.approx([steps[0][0]] * 4, abs=1e-4)
    assert steps[1] == pytest.approx(steps[0], abs=1e-4)

    whole.state.best_model_checkpoint = str(tmp_path / "out" / "checkpoint-2")
    whole._load_best_model()
    best = load_checkpoint(whole.state.best_model_checkpoint)
    assert torch.equal(logits_of(whole.model), logits_of(best))
    assert (logits_of(best) - logits_of(resumed.model)).abs().max() > 1e-3


def test_an_error_in_the_middle_leaves_the_model_as_it_was(base, build):
    for model, given in ((two_adapters(copy.deepcopy(base)), {}), (base, {"peft_config": lora(bias="all")})):
        trainer = build(model, given)
        model = trainer.model
        before, found = weights(model), [(p.requires_grad, p.data_ptr()) for p in model.parameters()]
        active, expected = list(model.active_adapters), logits_of(model)

        def fail(*given):
            raise RuntimeError("out of memory")

        trainer.forward_path.reference = fail
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer.train()
        assert not changed(before, weights(model))
        assert [(p.requires_grad, p.data_ptr()) for p in model.parameters()] == found
        assert model.active_adapters == active
        assert torch.equal(logits_of(model), expected)
        assert model.get_model_status().enabled is True


# What cannot be trained, or not be saved: one line before anything


def _both_active(base):
    model = two_adapters(base)
    model.base_model.set_adapter(["default", "v2"])
    return model


def _frozen_below(base):
    model = _both_active(base)
    model.set_requires_grad("default", False)
    return model


def _merged(base):
    model = shaken(get_peft_model(base, lora()), "default")
    model.merge_adapter()
    return model


def _off(base):
    model = get_peft_model(base, lora())
    model.base_model.disable_adapter_layers()
    return model


def _active_frozen(base):
    model = two_adapters(base)
    model.set_requires_grad("v2", False)
    model.set_requires_grad("default", True)
    return model


def _base_unfrozen(base):
    model = get_peft_model(base, lora())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    return model


def _transformers_own(base):
    base.add_adapter(lora(), "one")
    base.add_adapter(lora(), "two")
    base.set_adapter(["one", "two"])
    return base


def _loaded_for_inference(base):
    return get_peft_model(base, lora()).requires_grad_(False)


REFUSED = {
    "two active": (
        _both_active,
        "2 adapters are active at once \\('default', 'v2'\\).*add_weighted_adapter",
    ),
    "frozen below a trained one": (_frozen_below, "2 adapters are active at once"),
    "merged": (_merged, "'default' is merged into the weights.*unmerge_adapter"),
    "switched off": (_off, "'default' is switched off.*enable_adapter_layers"),
    "a model around a model": (
        lambda base: get_peft_model(get_peft_model(base, lora()), lora()),
        "around another PeftModel.*merge_and_unload",
    ),
    "mixed": (lambda base: PeftMixedModel(base, lora()), "A PeftMixedModel cannot be saved"),
    "the active one frozen": (_active_frozen, "active adapter 'v2' is frozen.*belongs to 'default'.*set_adapter"),
    "loaded for inference": (_loaded_for_inference, "No parameter of the model is trainable"),
    "weights below": (
        _base_unfrozen,
        "1 trainable parameters are no part of the adapter 'default'.*norm.weight",
    ),
    "two of transformers' own": (_transformers_own, "2 adapters are active at once \\('one', 'two'\\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_trained_or_saved_is_refused(kind, base, build):
    make, told = REFUSED[kind]
    for trainer_class, settings in ((NPOTrainer, {}), (GATrainer, {"retain_loss": "none"})):
        with pytest.raises(ValueError, match=told) as error:
            build(make(copy.deepcopy(base)), trainer_class=trainer_class, **settings)
        assert "\n" not in str(error.value)


def test_an_adapter_that_is_trainable_but_idle_changes_nothing(base, build):
    model = two_adapters(base)
    model.set_requires_grad("default", True)
    before = weights(model)
    build(model).train()
    assert changed(before, weights(model))
    assert not [name for name in changed(before, weights(model)) if ".default." in name]


def test_transformers_own_adapters_train_and_load(base, build, tmp_path):
    base.add_adapter(lora(init_lora_weights=False), "v2")
    trainer = build(base)
    trainer.train()
    (first, *_) = (entry for entry in trainer.state.log_history if "forget/loss" in entry)
    assert first["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
    assert abs(first["retain/loss"]) < 1e-6
    trainer.save_model()
    assert torch.equal(logits_of(load_checkpoint(str(tmp_path / "out"))), logits_of(base))


def test_a_head_that_trains_beside_an_adapter_of_a_tied_model(build, tmp_path):
    make_model(tie=True).save_pretrained(tmp_path / "tied")
    for reference in ("auto", "cache", "live"):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
        trainer = build(base, {"peft_config": lora(modules_to_save=["lm_head"])}, reference=reference, max_steps=3)
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "forget/loss" in entry]
        assert steps[0]["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
        assert abs(steps[0]["retain/loss"]) < 1e-6
        assert [s["forget/ref_logps"] for s in steps] == pytest.approx([steps[0]["forget/ref_logps"]] * 3, abs=1e-4)
        after = logits_of(trainer.model)
        trainer.save_model()
        assert torch.equal(logits_of(load_checkpoint(str(tmp_path / "out"))), after)


# Folders


def test_a_folder_of_several_adapters_must_say_which(base, base_path, tmp_path):
    model = two_adapters(base)
    model.save_pretrained(tmp_path)
    for read in (load_checkpoint, adapter_folder, published_files):
        with pytest.raises(ValueError, match="holds 2 adapters and does not say.*'default' in the folder.*'v2'.*v2'"):
            read(str(tmp_path))
    assert torch.equal(logits_of(load_checkpoint(str(tmp_path / "v2"))), logits_of(model))


def test_the_reference_that_trl_leaves_beside_a_trained_adapter_is_neither_taken_nor_pushed(base, tmp_path):
    model = two_adapters(base, "ref", "default")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "ref" / "adapter_model.safetensors").exists()
    assert torch.equal(logits_of(load_checkpoint(str(tmp_path))), logits_of(model))
    assert {path.parent for path in published_files(tmp_path)} == {tmp_path}


def test_an_adapter_saved_below_another_is_a_copy_of_its_own(base, base_path, build, tmp_path):
    class Copies(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.save_pretrained(f"{args.output_dir}/copy-{state.global_step}")

    model = shaken(get_peft_model(AutoModelForCausalLM.from_pretrained(base_path), lora()), "default")
    trainer = build(model, {"callbacks": [Copies()]})
    trainer.train()
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    assert adapter_folder(out) == out
    assert torch.equal(load_checkpoint(str(out))(IDS).logits, trainer.model.eval()(IDS).logits)
    assert not [file for file in published_files(out) if "copy" in str(file)]


@pytest.mark.parametrize("change", ["active", "alpha"])
def test_what_was_kept_of_one_adapter_is_not_taken_for_another(change, base, build):
    def begun(model):
        trainer = build(model, reference="cache", max_steps=1)
        trainer.train()
        return trainer.state.log_history[0]

    model = two_adapters(base)
    alike = copy.deepcopy(model)
    first = begun(model)
    if change == "active":
        alike.set_adapter("default")
    else:
        alike.peft_config["v2"].lora_alpha *= 4
        for module in alike.modules():
            if isinstance(getattr(module, "scaling", None), dict) and "v2" in module.scaling:
                module.scaling["v2"] *= 4
    second = begun(alike)
    assert first["forget/ref_logps"] != pytest.approx(second["forget/ref_logps"], abs=1e-3)
    assert second["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
    assert second["retain/loss"] == pytest.approx(0, abs=1e-6)


def test_the_one_adapter_in_a_folder_of_its_name_is_found(base, base_path, tmp_path):
    from hf_unlearn.audit.checkpoints import check_checkpoint_path, checkpoint_of

    model = shaken(get_peft_model(base, lora(), adapter_name="v2"), "v2")
    model.save_pretrained(tmp_path)
    check_checkpoint_path(str(tmp_path))
    assert torch.equal(logits_of(checkpoint_of(str(tmp_path))), logits_of(model))


def test_an_adapter_that_is_not_whole_is_refused(base, tmp_path):
    shaken(get_peft_model(base, lora()), "default").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file)
    with pytest.raises(ValueError, match="lacks weights that it needs.*lora_A.weight"):
        load_checkpoint(str(tmp_path))
    save_file({name.replace("base_model", "base_model.model.base_model", 1): x for name, x in tensors.items()}, file)
    with pytest.raises(ValueError, match="lacks weights"):
        load_checkpoint(str(tmp_path))
    save_file(tensors | {"base_model.model.model.layers.7.q_proj.lora_A.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="has weights for no part of LlamaForCausalLM: .*layers.7"):
        load_checkpoint(str(tmp_path))


def test_an_adapter_that_names_no_model_is_refused(base, tmp_path):
    get_peft_model(base, lora()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which model it belongs on"):
        load_checkpoint(str(tmp_path))


def test_what_earlier_versions_left_of_the_reference_is_read_past_and_not_pushed(base, build, tmp_path):
    trainer = build(base, {"peft_config": lora()})
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    assert published_files(out)
    file = out / "adapter_model.safetensors"
    tensors = load_file(file)
    left = {name.replace(".weight", ".unlearn_ref.weight"): x + 1 for name, x in tensors.items()}
    save_file(tensors | left, file)
    with pytest.raises(ValueError, match="holds the adapter as it was before unlearning \\('unlearn_ref'\\)"):
        published_files(out)
    assert torch.equal(logits_of(load_checkpoint(str(out))), logits_of(trainer.model))


# From and to TRL


def test_an_adapter_goes_from_sft_to_unlearning_and_back(base_path, build, tmp_path):
    from trl import SFTConfig, SFTTrainer

    def sft(model, folder, **given):
        args = make_args(SFTConfig, tmp_path / folder, max_steps=2, bf16=False, activation_checkpointing=False)
        trainer = SFTTrainer(model, args, train_dataset=_dataset(WHO), processing_class=make_tokenizer(), **given)
        trainer.train()
        trainer.save_model()
        return trainer.model

    learned = sft(base_path, "sft", peft_config=lora(init_lora_weights=False))
    entered = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "sft", is_trainable=True)
    torch.testing.assert_close(logits_of(entered), logits_of(learned))
    trainer = build(entered)
    trainer.train()
    (first, *_) = (entry for entry in trainer.state.log_history if "forget/loss" in entry)
    assert first["forget/loss"] == pytest.approx(TWO_LN_2, abs=1e-4)
    assert abs(first["retain/loss"]) < 1e-6
    trainer.save_model()
    unlearned = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", is_trainable=True)
    assert torch.equal(logits_of(unlearned), logits_of(trainer.model))
    relearned = sft(unlearned, "again")
    assert (logits_of(relearned) - logits_of(trainer.model)).abs().max() > 1e-3


def _dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


# An adapter that fits nothing


FITS_NOTHING = {
    "targets": ({"target_modules": ["nothing"]}, "Target modules {'nothing'} not found.*linear layers.*q_proj"),
    "a pattern": ({"target_modules": r".*nothing"}, "not found in the base model.*q_proj"),
    "layers": ({"layers_to_transform": [7]}, "not found in the base model.*layers_to_transform"),
    "modules to save": ({"modules_to_save": ["score"]}, "modules_to_save: score is no module of LlamaForCausalLM"),
}


@pytest.mark.parametrize("kind", FITS_NOTHING)
def test_an_adapter_that_fits_nothing_is_refused_before_weights_are_loaded(kind, base, base_path, build, monkeypatch):
    settings, told = FITS_NOTHING[kind]
    monkeypatch.setattr("hf_unlearn.modeling.load_model", lambda *given: pytest.fail("weights were loaded"))
    for model in (base_path, base):
        with pytest.raises(ValueError, match=told) as error:
            build(model, {"peft_config": lora(**settings)})
        assert "\n" not in str(error.value)


def test_words_that_stand_for_kinds_of_layers_fit(base_path, build):
    for targets in ("all-linear", r".*\.q_proj"):
        trainer = build(base_path, {"peft_config": lora(target_modules=targets)}, max_steps=1)
        assert any("q_proj.lora_A" in name for name, _ in trainer.model.named_parameters())


def test_targets_of_which_some_are_there_are_told(base, build, caplog):
    build(base, {"peft_config": lora(target_modules=["q_proj", "query_key_value"])})
    assert "target_modules: query_key_value is no module of LlamaForCausalLM" in caplog.text


def test_a_run_of_a_trained_adapter_goes_on_from_the_adapter_that_it_began_with(base, base_path, build, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    begun = shaken(get_peft_model(base, lora()), "default")
    build(copy.deepcopy(begun), **saving).train()
    first = tmp_path / "out" / "checkpoint-1"
    # As trainers without a reference are resumed by many.
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_path), first, is_trainable=True)
    with pytest.raises(ValueError, match="began with other weights"):
        build(again, **saving).train(resume_from_checkpoint=str(first))
    build(begun, **saving).train(resume_from_checkpoint=str(first))


def test_a_fresh_adapter_may_be_drawn_anew_and_its_base_may_not_be_another(base_path, build, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}

    def fresh(seed):
        torch.manual_seed(seed)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(base_path), lora())

    build(fresh(1), **saving).train()
    first = str(tmp_path / "out" / "checkpoint-1")
    build(fresh(2), **saving).train(resume_from_checkpoint=first)
    build(AutoModelForCausalLM.from_pretrained(base_path), {"peft_config": lora()}, **saving).train(first)
    with pytest.raises(ValueError, match="began with other weights"):
        build(make_model(seed=9), {"peft_config": lora()}, **saving).train(first)


def test_another_adapter_that_is_activated_before_training_is_refused(base, build):
    model = two_adapters(base)
    trainer = build(model)
    model.set_adapter("default")
    with pytest.raises(ValueError, match="active adapter is default now, and the trainer was built with v2"):
        trainer.train()


def test_checkpoints_of_transformers_own_adapters_are_refused_before_a_step(base, build):
    base.add_adapter(lora())
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    build(base, **saving).train()
    with pytest.raises(ValueError, match="transformers' own.*neither be resumed.*get_peft_model"):
        build(base, **saving).train(resume_from_checkpoint=True)
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    trainer = build(base, {"eval_dataset": {"retain": WHO}}, metric_for_best_model="eval_retain_loss", **best | saving)
    with pytest.raises(ValueError, match="nor its best one be loaded"):
        trainer.train()
