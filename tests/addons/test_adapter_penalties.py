# SPDX-License-Identifier: Apache-2.0
"""Orthogonality to earlier adapters and repulsion from one, against products that are written out."""

import pytest
import torch
from conftest import changed, lora, make_model, make_tokenizer, weights
from peft import AdaLoraConfig, IA3Config, get_peft_model

from hf_unlearn import GAConfig, NPOTrainer
from hf_unlearn.addons.settings import addons_of
from hf_unlearn.models.adapter_factors import saved_factors
from hf_unlearn.training.addon_checks import check_engine


FORGET = [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy of {i:02d}."} for i in range(8)]
RETAIN = [{"text": f"common {'y' * i} of Bob"} for i in range(8)]
LOOP = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "gradient_accumulation_steps": 2, "max_steps": 2}


def trained_adapter(seed=0, **settings):
    model = get_peft_model(make_model(), lora(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adalora():
    return AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], total_step=4)


@pytest.fixture
def saved(tmp_path):
    """A folder with an adapter of random values."""

    def saved(seed=0, **settings):
        folder = tmp_path / f"adapter-{seed}"
        trained_adapter(seed, **settings).save_pretrained(folder)
        return str(folder)

    return saved


@pytest.fixture
def trained(build, tmp_path):
    def trained(given=None, out="out", train=True, **settings):
        rows = {"forget_dataset": FORGET, "retain_dataset": RETAIN, "peft_config": lora()}
        defaults = {"retain_loss": "nll", "max_steps": 2, "output_dir": tmp_path / out}
        made = build(NPOTrainer, given=rows | (given or {}), **defaults | settings)
        if train:
            made.train()
        return made

    return trained


def products(model):
    """What an adapter adds to each weight, by layer, from what PEFT itself computes; and the factors A."""
    layers = {n: m for n, m in model.named_modules() if "default" in getattr(m, "lora_A", {})}
    return (
        {n: m.scaling["default"] * m.lora_B["default"].weight @ m.lora_A["default"].weight for n, m in layers.items()},
        {n: m.lora_A["default"].weight for n, m in layers.items()},
    )


def orthogonality(model, earlier):
    own = products(model)[1]
    return 0.1 * sum((products(e)[1][n] @ a.T).square().sum() for e in earlier for n, a in own.items())


def repulsion(form):
    def penalty(model, given):
        own, other = products(model)[0], products(given[0])[0]
        shared = own.keys() & other.keys()
        away = sum((own[n] - other[n]).square().sum() for n in shared)
        distance = away / sum(other[n].square().sum() for n in shared)
        return 2.0 * {"exponential": torch.exp(-distance), "inverse": 1 / distance, "linear": -distance}[form]

    return penalty


def plain_loop(loop, penalty, others):
    """Two SGD steps of the loss without the add-on, and the penalty as it is written out."""
    model, batches = loop.model.train(), list(loop.get_train_dataloader())
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    loop.references.open(loop.accelerator)
    for step in range(2):
        total = penalty(model, others)
        for batch in batches[2 * step : 2 * step + 2]:
            total = total + sum(loop.weighted_terms(model, batch).values()) / 2
        found = torch.autograd.grad(total, parameters)
        with torch.no_grad():
            for weight, gradient in zip(parameters, found, strict=True):
                weight -= 0.5 * gradient


@pytest.mark.parametrize("name", ["orthogonal", "exponential", "inverse", "linear"])
def test_steps_equal_a_plain_loop(trained, saved, name):
    # Of another rank, and of more layers than train.
    kinds = {"r": 3, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_alpha": 5}
    seeds = (1, 2) if name == "orthogonal" else (1,)
    folders, others = [saved(seed, **kinds) for seed in seeds], [trained_adapter(seed, **kinds) for seed in seeds]
    if name == "orthogonal":
        settings, penalty, logged = {"orthogonal_to": folders}, orthogonality, "orthogonal/loss"
    else:
        settings = {"repel_from": folders[0], "repel_form": name, "repel_weight": 2.0}
        penalty, logged = repulsion(name), "repel/loss"
    trainer = trained(**LOOP, **settings)
    loop = trained(out="loop", train=False, **LOOP)
    plain_loop(loop, penalty, others)
    for own, other in zip(trainer.model.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=2e-6)
    plain = trained(out="plain", **LOOP)
    assert changed(weights(trainer.model), weights(plain.model))
    values = [entry[logged] for entry in trainer.state.log_history if logged in entry]
    assert values[1] < values[0]


def test_a_saved_adapters_scalings_are_pefts(saved, tmp_path):
    settings = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    found, expected = saved_factors(saved(3, **settings)), products(trained_adapter(3, **settings))[0]
    assert found.keys() == expected.keys()
    for name, factors in found.items():
        torch.testing.assert_close(factors.scaling * factors.b @ factors.a, expected[name])
        torch.testing.assert_close(factors.square_norm(), expected[name].square().sum())


@pytest.mark.parametrize("name", ["orthogonal_to", "repel_from"])
def test_a_resumed_run_ends_with_the_same_weights(trained, saved, name):
    folder = saved()
    settings = {name: [folder] if name == "orthogonal_to" else folder, "max_steps": 4}
    whole = trained(out="whole", save_strategy="steps", save_steps=2, **settings)
    rest = trained(out="rest", train=False, **settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert not changed(weights(whole.model), weights(rest.model))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"orthogonal_weight": 0.2}, "orthogonal_weight would have no effect: give `orthogonal_to`"),
        ({"orthogonal_to": ["nowhere"]}, "orthogonal_to: 'nowhere' has no adapter_config.json"),
        ({"orthogonal_to": ["FOLDER"], "orthogonal_weight": 0.0}, "orthogonal_weight=0.0"),
        ({"orthogonal_to": ["FOLDER"], "given": {"peft_config": None}}, "compares adapters, and this run has"),
        ({"orthogonal_to": ["IA3"]}, "is a .*IA3.* adapter. Give that of a LoRA"),
        ({"repel_form": "inverse"}, "repel_form would have no effect: give `repel_from`"),
        ({"repel_from": "nowhere"}, "repel_from: 'nowhere' has no adapter_config.json"),
        ({"repel_from": "FOLDER", "repel_form": "cubic"}, "repel_form='cubic'; allowed"),
        ({"repel_from": "FOLDER", "lora_init": "fila"}, "repel_from and lora_init='fila'"),
        ({"orthogonal_to": ["FOLDER"], "lora_init": "fila"}, "orthogonal_to and lora_init='fila'"),
        ({"orthogonal_to": ["PISSA"]}, r"orthogonal_to: '.*pissa' has init_lora_weights='pissa'.*Convert it"),
        ({"repel_from": "ADALORA"}, "repel_from: '.*' is a ADALORA adapter"),
        ({"repel_from": "FOLDER", "given": {"peft_config": None}}, "repel_from compares adapters, and"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    trained, saved, model_path, unloaded, tmp_path, settings, told
):
    get_peft_model(make_model(), IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    others = {"pissa": lora(init_lora_weights="pissa"), "adalora": adalora()}
    for name, config in others.items():
        get_peft_model(make_model(), config).save_pretrained(tmp_path / name)
    places = {"FOLDER": saved(), **{name.upper(): str(tmp_path / name) for name in ("ia3", *others)}}
    given = {"model": model_path, "processing_class": make_tokenizer()} | settings.get("given", {})
    settings = {name: value for name, value in settings.items() if name != "given"}
    if "orthogonal_to" in settings:
        settings["orthogonal_to"] = [places.get(name, name) for name in settings["orthogonal_to"]]
    if "repel_from" in settings:
        settings["repel_from"] = places.get(settings["repel_from"], settings["repel_from"])
    with pytest.raises(ValueError, match=told):
        trained(given=given, train=False, **settings)


def test_adapters_that_do_not_fit_are_refused(trained, saved):
    with pytest.raises(ValueError, match="is of .*down_proj, .*, and that which trains of .*q_proj"):
        trained(train=False, orthogonal_to=[saved(1, target_modules=["down_proj"])])
    with pytest.raises(ValueError, match=r"q_proj is \(32, 32\) in .* and \(64, 64\) in the model"):
        trained(given={"model": make_model(hidden_size=64)}, train=False, repel_from=saved())
    with pytest.raises(ValueError, match="is where the adapter starts, and there is no direction away from it"):
        trained(given={"model": trained_adapter(), "peft_config": None}, train=False, repel_from=saved())


@pytest.mark.parametrize("name", ["orthogonal_to", "repel_from"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("fresh", [True, False])
def test_an_adapter_that_took_a_part_of_the_weights_is_refused(trained, saved, name, init, fresh):
    folder, config = [saved()] if name == "orthogonal_to" else saved(), lora(init_lora_weights=init)
    given = {"peft_config": config} if fresh else {"model": get_peft_model(make_model(), config), "peft_config": None}
    with pytest.raises(ValueError, match=f"{name} and init_lora_weights='{init}': such an adapter adds its diff"):
        trained(given=given, train=False, **{name: folder})


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", False])
def test_what_an_adapter_adds_is_what_is_compared_wherever_its_factors_start(trained, saved, init):
    folder = saved(1)
    trainer = trained(
        given={"peft_config": lora(init_lora_weights=init)}, orthogonal_to=[folder], repel_from=folder, max_steps=1
    )
    entered = weights(make_model())
    added = {name: product.detach().clone() for name, product in products(trainer.model)[0].items()}
    merged = weights(trainer.model.merge_and_unload())
    assert len(added) == 4
    for name, product in added.items():
        plain = name.removeprefix("base_model.model.") + ".weight"
        torch.testing.assert_close(merged[plain] - entered[plain], product, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["orthogonal_to", "repel_from"])
def test_an_adapter_that_adds_more_than_its_factors_is_refused(trained, saved, name):
    folder = [saved()] if name == "orthogonal_to" else saved()
    for kind, config in (("DoRA", lora(use_dora=True)), ("ADALORA", adalora())):
        with pytest.raises(ValueError, match=rf"{name}: a {kind} adapter trains"):
            trained(given={"peft_config": config}, train=False, **{name: folder})


@pytest.mark.parametrize("name", ["orthogonal_to", "repel_from"])
def test_engines_that_shard_are_refused(saved, tmp_path, name):
    args = GAConfig(
        output_dir=str(tmp_path), use_cpu=True, **{name: [saved()] if name == "orthogonal_to" else saved()}
    )
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match=f"{name} reads whole weights between steps, and DeepSpeed"):
        check_engine(args, addons_of(args))
