# SPDX-License-Identifier: Apache-2.0
"""FILA: where an adapter starts, and that what is saved works on the original base."""

import json

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights
from peft import PeftModel, get_peft_model

from hf_unlearn import GAConfig, GATrainer, IHLTrainer, NPOTrainer
from hf_unlearn.addons.fila import low_rank
from hf_unlearn.addons.settings import addons_of
from hf_unlearn.models.adapter_start import lora_layers
from hf_unlearn.training.addon_checks import check_engine


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy of {i:02d}."} for i in range(6)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(6)]
SAVES = {"save_strategy": "steps", "save_steps": 2}
ALL = {"target_modules": "all-linear"}


@pytest.fixture
def started(build, tmp_path):
    def started(trainer=IHLTrainer, given=None, out="out", adapter=ALL, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN, "peft_config": adapter and lora(**adapter)}
        defaults = {"lora_init": "fila", "retain_loss": "nll", "max_steps": 4, "output_dir": tmp_path / out}
        return build(trainer, given=rows | (given or {}), **defaults | settings)

    return started


def ids():
    return make_tokenizer()("secret common xyz of Bob", return_tensors="pt")["input_ids"]


def logits(model):
    with torch.no_grad():
        return model.eval()(ids()).logits


def on_the_base(folder, model=None):
    """What PEFT alone makes of a folder and the model that was there before."""
    return PeftModel.from_pretrained(make_model() if model is None else model, folder)


def slow_start(roles, name, rank, scaling):
    """The factors of one layer, in float64 and row by row."""
    model = make_model().double()
    weight = model.get_parameter(f"{name}.weight")

    def squares(rows):
        total = torch.zeros_like(weight)
        for row in rows:
            found, labels = model(torch.tensor([row["input_ids"]])).logits[0, :-1], torch.tensor(row["labels"])[1:]
            loss = torch.nn.functional.cross_entropy(found, labels, ignore_index=-100)
            total += torch.autograd.grad(loss, weight)[0].square()
        return total / len(rows)

    importance = squares(roles["forget"]) / (squares(roles["retain"]) + 1e-5)
    d = importance.sum(1).sqrt()
    u, s, v = torch.linalg.svd(d.diag() @ weight.detach())
    a = (s[:rank] / scaling).sqrt().diag() @ v[:rank]
    b = (1 / (d + 1e-5)).diag() @ u[:, :rank] @ (s[:rank] / scaling).sqrt().diag()
    return a, b


def test_the_start_equals_the_formula_and_changes_nothing_said(started):
    trainer = started(adapter=ALL | {"lora_alpha": 6})
    layers = lora_layers(trainer.model)
    assert len(layers) == 14
    entered = weights(make_model())
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = layers[f"base_model.model.{path}"]
        a, b = slow_start(trainer.train_dataset.roles, path, rank=4, scaling=1.5)
        own = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        torch.testing.assert_close(own, b @ a, rtol=1e-3, atol=1e-4 * (b @ a).abs().max().item())
        norms = layer.lora_A["default"].weight.norm(dim=1), layer.lora_B["default"].weight.norm(dim=0)
        torch.testing.assert_close(norms[0].double(), a.norm(dim=1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norms[1].double(), b.norm(dim=0), rtol=1e-3, atol=1e-5)
        residual = entered[f"{path}.weight"] - 1.5 * own.float()
        torch.testing.assert_close(layer.get_base_layer().weight.detach(), residual, rtol=1e-4, atol=1e-5)
        assert (layer.get_base_layer().weight - entered[f"{path}.weight"]).norm() > 0.1 * residual.norm()
    torch.testing.assert_close(logits(trainer.model), logits(make_model()), rtol=1e-4, atol=1e-5)


def test_a_rank_above_the_weights_own_is_filled_with_zeros():
    weight, importance = torch.randn(3, 5), torch.rand(3, 5)
    a, b = low_rank(weight, importance, rank=4, scaling=2.0)
    assert (a.shape, b.shape) == ((4, 5), (3, 4))
    torch.testing.assert_close(2.0 * b @ a, weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reference", ["auto", "cache", "live"])
def test_the_reference_is_the_model_before(started, reference):
    trainer = started(NPOTrainer, retain_loss="kl", reference=reference, max_steps=2)
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "retain/loss" in entry)
    assert abs(first["retain/loss"]) < 1e-6 < second["retain/loss"]


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}


@pytest.mark.parametrize("settings", [{}, PATTERNS | {"use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_is_saved_works_on_the_original_base(started, settings, tmp_path):
    target = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    trainer = started(adapter=target | settings)
    trainer.train()
    trainer.save_model()
    trained = logits(trainer.model)
    assert (trained - logits(make_model())).abs().max() > 1e-2
    loaded = on_the_base(trainer.args.output_dir)
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-3, atol=2e-4)
    assert loaded.peft_config["default"].r == 8
    # Whoever saves it.
    trainer.model.save_pretrained(tmp_path / "own")
    torch.testing.assert_close(logits(on_the_base(tmp_path / "own")), trained, rtol=1e-3, atol=2e-4)
    # And in memory, the weights are those.
    torch.testing.assert_close(logits(trainer.model.merge_and_unload()), trained, rtol=1e-3, atol=2e-4)


def test_a_resumed_run_ends_with_the_same_weights(started, tmp_path):
    settings = {"gradient_accumulation_steps": 2, **SAVES}
    whole = started(out="whole", **settings)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-2"
    rest = started(out="rest", **settings)
    rest.train(resume_from_checkpoint=checkpoint)
    assert not changed(weights(whole.model), weights(rest.model))
    # A checkpoint is a whole result too.
    assert json.loads((tmp_path / "whole" / "checkpoint-2" / "adapter_config.json").read_text())["r"] == 8
    assert (logits(on_the_base(checkpoint)) - logits(on_the_base(f"{whole.args.output_dir}/checkpoint-4"))).any()


def test_the_best_checkpoint_is_loaded_at_the_end(started):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_retain_loss", "eval_steps": 2}
    rows = {"eval_dataset": {"retain": RETAIN}}
    # Ascent that nothing holds: it gets worse.
    fast = {"learning_rate": 0.05, "retain_weight": 1e-3}
    trainer = started(GATrainer, given=rows, eval_strategy="steps", **fast, **best, **SAVES)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    found = logits(on_the_base(trainer.state.best_model_checkpoint))
    torch.testing.assert_close(logits(trainer.model), found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lora_init_rows": 2}, "made with lora_init_rows=None, and this run has 2"),
        ({"adapter": ALL | {"r": 2}}, "has another rank"),
        ({"lora_init": "default"}, "made with lora_init, whose state this run would drop"),
    ],
)
def test_a_checkpoint_of_another_start_is_refused(started, settings, told):
    first = started(out="first", **SAVES)
    first.train()
    with pytest.raises(ValueError, match=told):
        started(**settings).train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")


def test_an_adapter_that_started_elsewhere_is_not_loaded(started):
    # Rows and weights of another run are refused before that; what may differ is what computed the start.
    first = started(out="first", max_steps=1)
    first.save_model()
    other = started(given={"retain_dataset": [{"text": f"Now {'z' * i}"} for i in range(6)]})
    with pytest.raises(ValueError, match="did not start where this run's did .* differs"):
        other.model.load_adapter(first.args.output_dir, "default")
    first.model.load_adapter(first.args.output_dir, "default")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lora_init": "eva"}, "lora_init='eva'; allowed: 'default', 'fila'"),
        ({"lora_init": "default", "lora_init_rows": 2}, "lora_init_rows would have no effect"),
        ({"lora_init_rows": 0}, "lora_init_rows=0"),
        ({"adapter": None}, "is where a LoRA adapter starts, and this run has none"),
        ({"given": {"retain_dataset": None}, "retain_loss": "none"}, "this run has no retain rows"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(started, model_path, unloaded, settings, told):
    given = {"model": model_path, "processing_class": make_tokenizer()} | settings.pop("given", {})
    with pytest.raises(ValueError, match=told):
        started(given=given, **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"adapter": ALL | {"use_dora": True}}, "use_dora=True.* Leave these at their defaults"),
        ({"adapter": ALL | {"init_lora_weights": "pissa"}}, "init_lora_weights='pissa'"),
        ({"adapter": {"target_modules": ["q_proj", "embed_tokens"]}}, "embed_tokens is a Embedding"),
        ({"given": {"model": make_model(tie=True)}, "adapter": {"target_modules": ["lm_head"]}}, "shares its weights"),
        ({"given": {"model": make_model().bfloat16()}}, "in torch.bfloat16.* load the model in float32"),
        ({"given": {"model": get_peft_model(make_model(), lora()), "peft_config": None}}, "the model came with one"),
    ],
)
def test_adapters_that_cannot_start_there_are_refused(started, settings, told):
    with pytest.raises(ValueError, match=told):
        started(**settings)


def test_engines_that_shard_are_refused(tmp_path):
    args = GAConfig(output_dir=str(tmp_path), lora_init="fila", use_cpu=True)
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match=r"FILA \(lora_init\) reads whole weights between steps, and DeepSpeed"):
        check_engine(args, addons_of(args))
