# SPDX-License-Identifier: Apache-2.0
"""The value-norm penalty against a slow formula over the whole model, its tables, its cost and its errors."""

import json

import pytest
import torch
from conftest import changed, make_args, make_model, make_tokenizer, train_batch, weights

from hf_unlearn import NPOConfig, NPOTrainer, RMUConfig, RMUTrainer
from hf_unlearn.addons.value_norms.prefix import Prefix


FORGET = [{"text": f"secret {i:02d} of Ada" + "!" * i} for i in range(8)]
# One row shorter than the tokens looked at.
RETAIN = [{"text": "ab"}, *({"text": f"common {i:02d} of Bob"} for i in range(7))]
TOKENS = 5


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("unlearned")
    make_model(seed=1, layers=3).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def build(tmp_path):
    def build(config=NPOConfig, trainer=NPOTrainer, model=None, peft_config=None, **kwargs):
        own = {"retain_loss": "kl"} if config is NPOConfig else {"layer_id": 1}
        settings = {"value_norm_penalty": 0.5, "value_norm_tokens": TOKENS, "poison_prefix": "zz", "poison_ratio": 0.3}
        args = make_args(
            config, tmp_path / "out", reference_cache_dir=str(tmp_path / "cache"), **own, **settings | kwargs
        )
        return trainer(
            model=model or make_model(layers=3),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=peft_config,
        )

    return build


@torch.no_grad()
def slow_values(model, ids: list[int], first: int) -> list[list[torch.Tensor]]:
    """Per layer, the values of a row's tokens `first` to `first + TOKENS`, from a pass over the whole row, float64."""
    model = model.double()
    found, hooks = [], []
    for layer in model.model.layers:
        hook = layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: found.append(output[0]))
        hooks.append(hook)
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    model.float()
    return [list(values[first : first + TOKENS]) for values in found]


def slow_term(model, target, rows, first: int, measure: str) -> float:
    """Mean over layers of the mean over rows' tokens."""
    layers = []
    per_row = [slow_values(model, ids, first) for ids in rows]
    goals = [slow_values(target, ids, first) if target is not None else None for ids in rows]
    for layer in range(3):
        distances = []
        for own, goal in zip(per_row, goals, strict=True):
            for place, value in enumerate(own[layer]):
                norm = value.norm()
                if goal is None:
                    distances.append(norm)
                elif measure == "norm":
                    distances.append((norm - goal[layer][place].norm()).abs())
                elif measure == "log":
                    distances.append((norm / goal[layer][place].norm()).log().abs())
                else:
                    other = goal[layer][place]
                    distances.append(1 - value @ other / norm / other.norm())
        layers.append(torch.stack(distances).mean())
    return torch.stack(layers).mean().item()


def shaken(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


MODES = {
    "fixed": {"forget": ("zero", "norm", 1.0)},
    "reference": {
        "forget": ("unlearned", "norm", 1.0),
        "poisoned": ("reference", "norm", 1.0),
        "retain": ("reference", "norm", 1.0),
    },
    "utility_preserving": {"forget": ("unlearned", "norm", 1.0), "poisoned": ("reference", "cosine", 0.2)},
    "adaptive": {"forget": ("unlearned", "norm", 1.0), "poisoned": ("reference", "log", 0.1 + 0.3 * 0.5)},
    "hybrid": {"forget": ("unlearned", "norm", 1.0), "poisoned": ("reference", "norm", 0.3)},
}


@pytest.mark.parametrize("include_first", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_penalty_equals_the_formula_over_the_whole_model(build, unlearned, mode, include_first):
    path = None if mode == "fixed" else unlearned
    trainer = build(
        value_norm_mode=mode, unlearned_model_name_or_path=path, value_norm_include_first=include_first, max_steps=2
    )
    trainer.train()
    shaken(trainer.model)
    # Half of the training is done, for the mode whose weight grows.
    trainer.state.global_step = 1
    batch = train_batch(trainer, range(8))
    models = {"zero": None, "reference": make_model(layers=3), "unlearned": make_model(seed=1, layers=3)}
    terms = trainer.addons["value_norms"].terms_of(trainer.model, trainer.parts_of(batch), progress=0.5)
    assert terms.keys() == MODES[mode].keys()
    for role, (target, measure, weight) in MODES[mode].items():
        part = trainer.parts_of(batch)[role]
        rows = [
            ids[: int(mask.sum())].tolist()
            for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
        ]
        expected = 0.5 * weight * slow_term(trainer.model, models[target], rows, 0 if include_first else 1, measure)
        assert terms[role].item() == pytest.approx(expected, rel=1e-4)
    total = trainer.compute_loss(trainer.model, batch).item()
    del trainer.addons["value_norms"]
    assert total - trainer.compute_loss(trainer.model, batch).item() == pytest.approx(
        sum(term.item() for term in terms.values()), rel=1e-4
    )


def test_matching_the_reference_costs_nothing_before_the_first_step(build, unlearned):
    trainer = build(value_norm_mode="reference", unlearned_model_name_or_path=unlearned)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "forget/value_norm" in entry)
    assert first["poisoned/value_norm"] == pytest.approx(0, abs=1e-6)
    assert first["retain/value_norm"] == pytest.approx(0, abs=1e-6)
    assert first["forget/value_norm"] > 1e-3


def test_the_penalty_shrinks_the_norms_that_it_is_about(build):
    quiet = build(value_norm_penalty=20.0, max_steps=12, forget_weight=0.0)
    quiet.train()
    norms = [entry["forget/value_norm"] for entry in quiet.state.log_history if "forget/value_norm" in entry]
    assert norms[-1] < 0.7 * norms[0]


def test_one_short_pass_a_step_and_no_model_but_the_policy(build, unlearned):
    trainer = build(RMUConfig, RMUTrainer, value_norm_mode="reference", unlearned_model_name_or_path=unlearned)
    widths = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    step = trainer.training_step
    counts = []

    def counted(*args, **kwargs):
        start = len(widths)
        result = step(*args, **kwargs)
        counts.append(widths[start:])
        return result

    trainer.training_step = counted
    trainer.train()
    hook.remove()
    assert len(counts) == 4
    for shapes in counts:
        assert len(shapes) == 2
        # Three roles of two rows; the second pass is over the first tokens only.
        assert shapes[1] == (6, TOKENS)


def test_the_penalty_reaches_layers_that_rmu_does_not_run(build):
    trainer = build(RMUConfig, RMUTrainer, forget_weight=0.0, retain_weight=0.0, value_norm_layers=[2])
    before = weights(trainer.model)
    trainer.train()
    # Layer 2 stands above the one that RMU reads; its norms move what trains below it.
    assert changed(before, weights(trainer.model)) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}


def test_lora_takes_the_entering_model_as_reference(build, unlearned):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build(value_norm_mode="reference", unlearned_model_name_or_path=unlearned, peft_config=adapter)
    trainer.train()
    first, *_, last = [entry for entry in trainer.state.log_history if "poisoned/value_norm" in entry]
    assert first["poisoned/value_norm"] == pytest.approx(0, abs=1e-6)
    assert last["poisoned/value_norm"] > 1e-4


def test_a_resumed_run_ends_as_an_uninterrupted_one(build, unlearned):
    settings = {"value_norm_mode": "adaptive", "unlearned_model_name_or_path": unlearned, "max_steps": 4}
    whole = build(save_strategy="steps", save_steps=2, **settings)
    whole.train()
    rest = build(**settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert not changed(weights(whole.model), weights(rest.model))


def test_a_target_map_makes_a_defence(build, unlearned):
    targets = {"forget": "unlearned", "poisoned": "unlearned"}
    trainer = build(
        value_norm_mode="reference", value_norm_targets=json.dumps(targets), unlearned_model_name_or_path=unlearned
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "forget/value_norm" in entry)
    assert logged["poisoned/value_norm"] > 1e-3
    assert "retain/value_norm" not in logged


def test_a_prefix_pass_gives_the_values_of_the_whole_row():
    model = make_model(layers=3)
    ids = torch.randint(4, 99, (2, 30), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    short, _ = Prefix(TOKENS, 1, (0, 2)).values(model, batch)
    assert short.shape == (2, 2, TOKENS, 32)
    for row in range(2):
        whole = slow_values(model, ids[row].tolist(), 1)
        for place, layer in enumerate((0, 2)):
            torch.testing.assert_close(short[row, place].double(), torch.stack(whole[layer]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"value_norm_mode": "reference"}, "unlearned_model_name_or_path"),
        ({"value_norm_mode": "nearest"}, "allowed: 'fixed', 'reference'"),
        ({"value_norm_penalty": -1.0}, "at least 0"),
        ({"value_norm_penalty": 0.0}, "would have no effect"),
        ({"value_norm_tokens": 0}, "at least 1"),
        ({"value_norm_layers": []}, "is empty"),
        ({"value_norm_layers": [3]}, "the model has 3 layers: give 0 to 2"),
        ({"value_norm_targets": {"forget": "nobody"}}, "allowed: 'zero', 'reference', 'unlearned'"),
        ({"value_norm_targets": {"stranger": "zero"}}, "allowed: 'forget', 'poisoned', 'retain'"),
        ({"value_norm_targets": "{"}, "is no JSON"),
        ({"unlearned_model_name_or_path": "somewhere"}, "no role is matched to it"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, settings, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        build(**settings)


def test_a_role_that_is_not_trained_on_is_refused(build):
    with pytest.raises(ValueError, match="about poisoned rows"):
        build(poison_prefix=None, poison_ratio=0.1, value_norm_targets={"poisoned": "reference"})


def test_an_unlearned_model_of_other_depth_is_refused(build, tmp_path):
    make_model(layers=2).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has 2 layers to look at, the model 3"):
        build(value_norm_mode="reference", unlearned_model_name_or_path=str(tmp_path / "other"))


def test_values_that_cannot_be_told_from_keys_are_refused(build):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    with pytest.raises(ValueError, match="has no module that puts out attention values"):
        build(model=GPTNeoXForCausalLM(config))
