# SPDX-License-Identifier: Apache-2.0
"""The reference is the model as it came in, through the whole of training, and leaves no trace."""

import copy
import os
from types import MethodType

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_unlearn import GAConfig, GATrainer, NPOConfig, NPOTrainer
from hf_unlearn.reference import REFERENCE_ADAPTER, AdapterReference, LiveReference
from hf_unlearn.reference.cached import CachedReference


IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 2]])


@pytest.fixture
def build(tmp_path, forget_rows, retain_rows):
    def build(model, given=None, trainer_class=NPOTrainer, **kwargs):
        args = make_args(trainer_class.config_class, tmp_path / "out", **({"retain_loss": "kl"} | kwargs))
        return trainer_class(
            model=model,
            args=args,
            forget_dataset=forget_rows,
            retain_dataset=retain_rows,
            processing_class=make_tokenizer(),
            **(given or {}),
        )

    return build


def trained_adapter(seed: int = 3, **kwargs):
    """A PEFT model whose adapter holds values, as after training."""
    from peft import get_peft_model

    model = get_peft_model(make_model(), lora(**kwargs))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def watch(trainer, entered) -> list[float]:
    """Compares every answer of the reference during training with the model as it entered."""
    distances, answer = [], trainer.reference.rows

    def watched(forward, policy, parts):
        training = policy.training
        trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        rows = answer(forward, policy, parts)
        assert policy.training == training, "the pass left the policy in another mode"
        assert trainable == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        expected = forward.reference(entered.eval(), parts)
        for role in parts:
            for kept in ("token_logps", "hidden"):
                got, wanted = getattr(rows[role], kept), getattr(expected[role], kept)
                assert (got is None) == (wanted is None)
                if got is not None:
                    assert not got.requires_grad
                    distances.append((got - wanted).abs().max().item())
        return rows

    trainer.reference.rows = watched
    return distances


KINDS = {
    "full": (lambda: make_model(), {}, CachedReference),
    "full, live": (lambda: make_model(), {"reference": "live"}, LiveReference),
    "fresh adapter, cache": (lambda: make_model(), {"peft_config": True, "reference": "cache"}, CachedReference),
    "trained adapter, cache": (trained_adapter, {"reference": "cache"}, CachedReference),
    "fresh adapter": (lambda: make_model(), {"peft_config": True}, AdapterReference),
    "fresh adapter, live": (lambda: make_model(), {"peft_config": True, "reference": "live"}, LiveReference),
    "trained adapter": (trained_adapter, {}, AdapterReference),
    "trained adapter, live": (trained_adapter, {"reference": "live"}, LiveReference),
    "trained adapter with dropout": (lambda: trained_adapter(lora_dropout=0.5), {}, AdapterReference),
    "adapter that takes from the base": (
        lambda: make_model(),
        {"peft_config": {"init_lora_weights": "pissa"}},
        AdapterReference,
    ),
    "trained adapter that took from the base": (
        lambda: trained_adapter(init_lora_weights="pissa"),
        {},
        AdapterReference,
    ),
    "adapter that starts elsewhere": (
        lambda: make_model(),
        {"peft_config": {"init_lora_weights": False}},
        AdapterReference,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_the_model_as_it_came_in_through_training(build, kind):
    make, settings, form = KINDS[kind]
    settings = dict(settings)
    model = make()
    entered = copy.deepcopy(model)
    expected = logits_of(entered)
    given = {}
    if "peft_config" in settings:
        options = settings.pop("peft_config")
        given["peft_config"] = lora(**(options if isinstance(options, dict) else {}))
    trainer = build(model, given=given, **settings)
    assert type(trainer.reference) is form
    distances = watch(trainer, entered)
    trainer.train()
    # Two roles, one kept value each, four steps.
    assert len(distances) == 8
    assert max(distances) < 2e-5
    assert (logits_of(trainer.model) - expected).abs().max() > 0.01, "nothing was trained"


def test_a_copy_of_an_adapter_that_took_from_the_base_leaves_the_base_alone(build):
    model = trained_adapter(init_lora_weights="pissa")
    expected = logits_of(model)
    trainer = build(model)
    trainer.reference.open(trainer.accelerator)
    torch.testing.assert_close(logits_of(model), expected)
    trainer.reference.close()
    torch.testing.assert_close(logits_of(model), expected)
    assert model.peft_config["default"].init_lora_weights == "pissa"


def test_the_live_copy_shares_nothing_with_the_policy_and_is_not_trained(build):
    model = make_model()
    before = weights(model)
    trainer = build(model, reference="live")
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in trainer.reference.model.parameters()}
    assert not shared
    trainer.train()
    assert not changed(before, weights(trainer.reference.model))
    assert not any(parameter.requires_grad for parameter in trainer.reference.model.parameters())
    assert changed(before, weights(model))


def test_no_reference_is_made_where_none_is_needed(build):
    for retain_loss in ("none", "nll"):
        assert build(make_model(), trainer_class=GATrainer, retain_loss=retain_loss).reference is None


# The traps


def test_a_model_with_a_replaced_forward_is_not_copied(build):
    # T1: trainers with a fused head replace `forward` on the instance; a copy still runs the original's weights.
    model = make_model()
    original = model.forward
    model.forward = MethodType(lambda self, **kwargs: original(**kwargs), model)
    with torch.no_grad():
        copied = copy.deepcopy(model)
        copied.lm_head.weight.zero_()
        assert copied(input_ids=IDS).logits.abs().max() > 0, "the trap is gone"
    with pytest.raises(ValueError, match="`forward` was replaced.*Pass the model as a path, or pass `ref_model`"):
        build(model, reference="live")
    assert build(model, given={"ref_model": make_model()}).reference.model is not model
    assert build(model, trainer_class=GATrainer, retain_loss="none").reference is None


def test_a_replaced_forward_under_an_adapter_is_found_too(build):
    model = make_model()
    original = model.forward
    model.forward = MethodType(lambda self, **kwargs: original(**kwargs), model)
    with pytest.raises(ValueError, match="`forward` was replaced"):
        build(model, given={"peft_config": lora()}, reference="live")


def test_a_model_in_memory_is_its_own_reference_not_the_one_on_disk(build, model_path):
    # T2: reloading from `config._name_or_path` would fetch the model before it was fine-tuned.
    model = AutoModelForCausalLM.from_pretrained(model_path)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    trainer = build(model, reference="live")
    assert not changed(weights(model), weights(trainer.reference.model))


def test_under_zero3_a_copy_is_refused_and_a_path_is_loaded_again(build, monkeypatch, model_path):
    # T3: parameters are empty shards there, so a copy holds nothing.
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="Under ZeRO-3.*Pass the model as a path or Hub id, or pass `ref_model`"):
        build(make_model(), reference="live")
    trainer = build(model_path, reference="live")
    assert trainer.reference.model is not trainer.model
    assert not changed(weights(trainer.model), weights(trainer.reference.model))
    assert build(make_model(), given={"ref_model": make_model(1)}).reference is not None


def test_the_copy_of_an_adapter_is_neither_saved_nor_left_behind(build, tmp_path):
    # T4: a second adapter would be saved in a folder of its own, and be in the way of the next trainer.
    model = trained_adapter()
    present = []

    class Present(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            present.append(set(model.peft_config))

    trainer = build(model, given={"callbacks": [Present()]}, save_strategy="steps", save_steps=2)
    trainer.train()
    assert present == [{"default"}] * 4
    trainer.save_model()
    assert set(model.peft_config) == {"default"}
    assert model.active_adapter == "default"
    assert not [name for name, _ in model.named_parameters() if REFERENCE_ADAPTER in name]
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        assert REFERENCE_ADAPTER not in os.listdir(folder)
        assert (folder / "adapter_model.safetensors").exists()
    build(model).train()


def test_the_copy_goes_also_when_training_fails(build):
    model = trained_adapter()
    trainer = build(model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    trainer.compute_loss = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert set(model.peft_config) == {"default"}


def test_a_run_with_a_trained_adapter_resumes_against_the_adapter_that_came_in(build, tmp_path):
    whole = build(trained_adapter(), save_strategy="steps", save_steps=2)
    whole.train()
    model = trained_adapter()
    entered = copy.deepcopy(model)
    resumed = build(model, save_strategy="steps", save_steps=2)
    distances = watch(resumed, entered)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert len(distances) == 4
    assert max(distances) < 2e-5
    assert not changed(weights(whole.model), weights(resumed.model))


def test_an_adapter_on_an_adapter_is_refused(build, tmp_path):
    # T5
    with pytest.raises(ValueError, match="carries an adapter already.*merge"):
        build(trained_adapter(), given={"peft_config": lora()})
    trained_adapter().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds an adapter, not a full model.*Merge it first"):
        build(str(tmp_path / "adapter"))


def test_batches_hold_whole_numbers_only(build):
    # T6: DeepSpeed casts floats of a batch to the engine's dtype, which rounds stored log-probabilities.
    batch = train_batch(build(make_model()), [0, 1])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert batch["index"].shape == (4,)


def test_an_adapter_loaded_for_inference_is_refused(build, tmp_path):
    from peft import PeftModel

    trained_adapter().save_pretrained(tmp_path / "adapter")
    for trainer_class in (GATrainer, NPOTrainer):
        frozen = PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
        with pytest.raises(ValueError, match="No parameter of the model is trainable.*is_trainable=True"):
            build(frozen, trainer_class=trainer_class)
    trainable = PeftModel.from_pretrained(make_model(), tmp_path / "adapter", is_trainable=True)
    build(trainable, max_steps=1).train()


# A reference of one's own


def test_a_given_reference_is_used(build):
    model, reference = make_model(), make_model(seed=5)
    trainer = build(model, given={"ref_model": reference})
    distances = watch(trainer, copy.deepcopy(reference))
    trainer.train()
    assert max(distances) == 0
    assert trainer.state.log_history[0]["forget/logps"] != trainer.state.log_history[0]["forget/ref_logps"]


def test_a_given_reference_is_used_beside_an_adapter(build):
    reference = make_model(seed=5)
    trainer = build(make_model(), given={"ref_model": reference, "peft_config": lora()})
    assert trainer.reference.model is reference


def test_a_reference_of_another_vocabulary_is_refused(build):
    with pytest.raises(ValueError, match="reference model predicts 120 tokens, the model 100"):
        build(make_model(), given={"ref_model": make_model(vocab_size=120)})


def test_the_model_itself_is_no_reference(build):
    model = make_model()
    with pytest.raises(ValueError, match="`ref_model` is the model itself"):
        build(model, given={"ref_model": model})


def test_adapter_reference_needs_an_adapter(build):
    with pytest.raises(ValueError, match="reference='adapter' needs a PEFT model"):
        build(make_model(), reference="adapter")
    build(make_model(), given={"peft_config": lora()}, reference="adapter", max_steps=1).train()


def test_configs_say_which_roles_need_a_reference():
    assert GATrainer.reference_roles_of(GAConfig(use_cpu=True)) == set()
    assert GATrainer.reference_roles_of(GAConfig(use_cpu=True, retain_loss="kl")) == {"retain"}
    assert NPOTrainer.reference_roles_of(NPOConfig(use_cpu=True)) == {"forget"}
    assert NPOTrainer.reference_roles_of(NPOConfig(use_cpu=True, retain_loss="kl")) == {"forget", "retain"}


def test_a_reference_that_nothing_is_compared_with_is_told(build, caplog):
    build(make_model(), trainer_class=GATrainer, given={"ref_model": make_model(1)}, retain_loss="nll")
    assert "`ref_model` is not used: no term of GATrainer" in caplog.text
