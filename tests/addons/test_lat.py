# SPDX-License-Identifier: Apache-2.0
"""Latent adversarial training, against plain PyTorch with hooks."""

import pytest
import torch
import torch.nn.functional as F
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from test_methods import CASES, FORGET, RETAIN, asked, halved
from zoo import small

from hf_unlearn import (
    METHODS,
    AmnesiacTrainer,
    FisherTrainer,
    GATrainer,
    IdkNLLTrainer,
    JensUnTrainer,
    NPOTrainer,
    RetrainTrainer,
    RMUTrainer,
)
from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.forward.passes import one_pass
from hf_unlearn.forward.real_tokens import RealTokens
from hf_unlearn.forward.shifts import Shifts
from hf_unlearn.fused.head import unwrapped


ROWS = {
    "forget_dataset": [{"prompt": f"Who is {'x' * (3 * i + 1)}?", "completion": f" A spy{'!' * i}"} for i in range(6)],
    "retain_dataset": [{"text": f"common {'y' * i} of Bob"} for i in range(6)],
}
LAT = {"lat_epsilon": 0.7, "lat_layers": [0, 1], "lat_steps": 2, "lat_learning_rate": 0.1}
# A radius that two steps of 0.1 a number stay within, of 32 numbers, and one that the first leaves.
RADII = (2.0, 0.3)
RMU = {"layer_id": 2, "layer_ids": [1, 2], "steering_coeffs": [20.0], "retain_weight": 10.0}


@pytest.fixture
def made(build, tmp_path):
    """A trainer of a model of three layers, and a way to train it."""

    def made(trainer=NPOTrainer, given=None, out="out", train=False, lat=None, **settings):
        lat = LAT if lat is None else lat
        settings = {"reference_cache_dir": str(tmp_path / "cache"), "max_steps": 3} | lat | settings
        settings = (
            {"retain_loss": "nll"} | (RMU | {"retain_loss": "states"} if trainer is RMUTrainer else {}) | settings
        )
        given = {"model": make_model(layers=3)} | ROWS | (given or {})
        found = build(trainer, given=given, output_dir=tmp_path / out, **settings)
        if train:
            found.train()
        return found

    return made


def on_the_way(model, by, mask):
    """Hooks that add `by`, layer to `[B, T, d]`, to what layers put out."""
    return [
        model.model.layers[layer].register_forward_hook(
            lambda module, args, output, own=own: output + own * mask[:, :, None]
        )
        for layer, own in by.items()
    ]


def logps_and_states(model, part, by, layer):
    """Log-probabilities of labels `[B, T-1]`, 0 where there is none, and a layer's output, under a perturbation."""
    taken, mask = [], part["attention_mask"]
    hooks = on_the_way(model, by, mask)
    hooks.append(model.model.layers[layer].register_forward_hook(lambda module, args, output: taken.append(output)))
    logits = model(input_ids=part["input_ids"], attention_mask=mask, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    logps = -F.cross_entropy(logits[:, :-1].transpose(1, 2), part["labels"][:, 1:], reduction="none")
    return logps, taken[0]


def sought_slowly(model, part, args, layer):
    """The perturbation, by autograd and AdamW written out."""
    prompt = part["labels"] == -100
    there = part["attention_mask"].bool() & (prompt if args.lat_tokens == "prompt" else True)
    shape = (*part["input_ids"].shape, 32)
    by = {number: torch.zeros(shape, dtype=torch.float64) for number in args.lat_layers}
    first = {number: torch.zeros(shape, dtype=torch.float64) for number in by}
    second = {number: torch.zeros(shape, dtype=torch.float64) for number in by}
    counts = (part["labels"][:, 1:] != -100).sum(1)
    for step in range(1, args.lat_steps + 1):
        asking = {number: own.clone().requires_grad_() for number, own in by.items()}
        logps, _ = logps_and_states(model, part, asking, layer)
        gradients = torch.autograd.grad(-(logps.sum(1) / counts).sum(), list(asking.values()))
        for number, gradient in zip(by, gradients, strict=True):
            gradient = gradient * there[:, :, None]
            first[number] = 0.9 * first[number] + 0.1 * gradient
            second[number] = 0.999 * second[number] + 0.001 * gradient**2
            moved = first[number] / (1 - 0.9**step) / ((second[number] / (1 - 0.999**step)).sqrt() + 1e-8)
            own = by[number] * (1 - 0.01 * args.lat_learning_rate) - args.lat_learning_rate * moved
            by[number] = own * (args.lat_epsilon / own.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    return by


@pytest.mark.parametrize("tokens", ["all", "prompt"])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("trainer", [GATrainer, NPOTrainer, RMUTrainer])
def test_the_objective_and_its_gradient_equal_a_slow_formula(made, trainer, radius, tokens):
    given = {"model": make_model(layers=3).double()}
    own = made(trainer, given=given, lat_tokens=tokens, reference="live", lat=LAT | {"lat_epsilon": radius})
    own.references.open(own.accelerator)
    with torch.no_grad():
        # Off its reference.
        for weight in own.model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double())
    model, args, batch = own.model.train(), own.args, train_batch(own, [0, 1, 2])
    parts = own.parts_of(batch)
    part = parts["forget"]
    by = sought_slowly(model, part, args, 2)
    assert (by[0].norm(dim=-1).max() < 0.999 * radius) == (radius == RADII[0])
    logps, states = logps_and_states(model, part, by, 2)
    if trainer is RMUTrainer:
        distance = ((states - own.coeffs[0] * own.control[0]) ** 2).mean(-1)
        wanted = distance[part["attention_mask"].bool()].mean()
    elif trainer is GATrainer:
        wanted = logps.sum() / (part["labels"][:, 1:] != -100).sum()
    else:
        with torch.no_grad():
            reference, _ = logps_and_states(make_model(layers=3).double(), part, {}, 2)
        wanted = (2 / args.beta * F.softplus(args.beta * (logps - reference).sum(1))).mean()
    terms = own.weighted_terms(model, batch)
    torch.testing.assert_close(terms["forget"], wanted, rtol=1e-6, atol=1e-9)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(terms["forget"], trained, allow_unused=True)
    expected = torch.autograd.grad(wanted, trained, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            # The projection stays 1e-7 inside of the ball.
            assert (one - other).norm() <= 1e-5 * other.norm()
    # Without it the term is another.
    model.eval()
    assert (own.weighted_terms(model, batch)["forget"] - wanted).abs() > 1e-4


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", ["one", "split", "packed"])
def test_only_forget_rows_of_the_policy_are_perturbed(made, fused, shape):
    settings = {"retain_loss": "kl", "forward_passes": shape, "fused_losses": fused, "reference": "live"}
    own, plain = made(**settings), made(lat={}, out="plain", **settings)
    found = {}
    for name, trainer in (("own", own), ("plain", plain)):
        trainer.references.open(trainer.accelerator)
        found[name] = trainer.role_rows(trainer.model.train(), train_batch(trainer, [0, 1]))
    for role, same in (("retain", True), ("forget", False)):
        one, other = (found[name][role] for name in ("own", "plain"))
        assert torch.allclose(one.token_logps, other.token_logps, atol=1e-5) == same
    torch.testing.assert_close(found["own"]["retain"].kl_to_reference, found["plain"]["retain"].kl_to_reference)
    assert torch.equal(found["own"]["forget"].ref_token_logps, found["plain"]["forget"].ref_token_logps)
    # The answers are likelier.
    assert found["own"]["forget"].nll < found["plain"]["forget"].nll - 0.01


def sought(trainer, positions=(0, 1, 2)):
    """The perturbation of a batch, and the batch."""
    trainer.references.open(trainer.accelerator)
    model, part = trainer.model.train(), trainer.parts_of(train_batch(trainer, positions))["forget"]
    return trainer.addons["lat"].sought(trainer.addons.step(model), part), part


@pytest.mark.parametrize("tokens", ["all", "prompt"])
def test_no_token_leaves_the_ball_and_padding_has_none(made, tokens):
    by, part = sought(made(lat_tokens=tokens, lat_steps=4, lat_epsilon=0.25))
    real = RealTokens.of(part)
    assert len(real.row) < part["input_ids"].numel()
    prompt = part["labels"][real.row, real.column] == -100
    for states in by.values():
        norms = states.norm(dim=-1)
        assert states.shape == (len(real.row), 32)
        assert norms.max() <= 0.25
        assert norms[prompt].min() > 0.24
        if tokens == "prompt":
            assert not norms[~prompt].any()
        else:
            # Nothing depends on the last token of a row.
            assert (norms[~prompt] > 0.24).sum() == (~prompt).sum() - 3
            assert (norms == 0).sum() == 3


def test_a_rows_perturbation_depends_on_no_other_row(made):
    together, part = sought(made(), (0, 1, 2))
    rows = RealTokens.of(part).row
    for position in range(3):
        alone, _ = sought(made(out=f"{position}"), (position,))
        for layer, states in alone.items():
            torch.testing.assert_close(states, together[layer][rows == position], rtol=1e-3, atol=1e-5)


def test_the_weights_get_no_gradient_of_it(made):
    trainer = made(given={"peft_config": lora()})
    asking = {name: weight.requires_grad for name, weight in trainer.model.named_parameters()}
    sought(trainer)
    assert any(asking.values())
    assert asking == {name: weight.requires_grad for name, weight in trainer.model.named_parameters()}
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_an_exception_leaves_nothing_behind(made, monkeypatch):
    trainer = made(reference="live")
    model = trainer.model.train()
    names, batch = [*dict(model.named_modules())], train_batch(trainer, [0, 1])
    trainer.references.open(trainer.accelerator)

    def broken(*args):
        raise RuntimeError("broken")

    # Inside of the inner loop, then of the policy's own pass.
    for target in ((trainer.addons["lat"].path, "policy_values"), (trainer.forward_path, "policy_values")):
        with monkeypatch.context() as patch:
            patch.setattr(*target, broken)
            with pytest.raises(RuntimeError, match="broken"):
                trainer.weighted_terms(model, batch)
        assert [*dict(model.named_modules())] == names
        assert trainer.forward_path.shifts is None
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("trainer", "peft"), [(GATrainer, False), (NPOTrainer, True), (RMUTrainer, False)])
def test_a_radius_of_0_is_the_method_itself_bit_for_bit(made, trainer, peft):
    # Dropout draws what it would draw without the inner loop.
    given = {"peft_config": lora(lora_dropout=0.3)} if peft else {}
    settings = {"given": given, "disable_dropout": False, "gradient_accumulation_steps": 2, "train": True}
    zero = made(trainer, out="zero", **settings, lat=LAT | {"lat_epsilon": 0})
    plain = made(trainer, out="plain", **settings, lat={})
    assert not changed(weights(zero.model), weights(plain.model))


def test_the_answers_are_elicited_and_the_cost_is_counted(made):
    settings = {"train": True, "learning_rate": 0.0, "forward_passes": "one"}
    trainer = made(**settings, lat=LAT | {"lat_steps": 6, "lat_epsilon": 2.0})
    for entry in trainer.state.log_history[:3]:
        assert entry["lat/elicited_nll"] < entry["lat/nll"] - 0.05
        assert entry["forget/nll"] < entry["lat/elicited_nll"]
    plain = made(out="plain", lat={}, **settings)
    for entry, other in zip(trainer.state.log_history[:3], plain.state.log_history[:3], strict=True):
        assert entry["lat/nll"] == pytest.approx(other["forget/nll"], rel=1e-5)
        assert entry["retain/nll"] == pytest.approx(other["retain/nll"], rel=1e-5)
    # Of two roles of one width, six times a forward and a backward to states.
    assert trainer.state.total_flos == pytest.approx((1 + 6 / 2 * 4 / 6) * plain.state.total_flos, rel=0.15)


@pytest.mark.parametrize("trainer", [NPOTrainer, RMUTrainer])
def test_every_path_and_checkpointing_give_the_same_weights(made, trainer):
    lat = LAT | {"lat_layers": [1]}
    if trainer is RMUTrainer:
        # The layer below what trains is on disk.
        lat = LAT | {"lat_layers": [0, 2]}
    settings = {"train": True, "lat": lat, "optim": "sgd", "learning_rate": 0.05}
    whole = weights(made(trainer, **settings, fused_losses=False, cache_frozen=False).model)
    assert changed(whole, weights(made(trainer, out="plain", **settings | {"lat": {}}).model))
    others = {
        "fused": {},
        "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    }
    for name, added in others.items():
        found = weights(made(trainer, out=name, **settings, **added).model)
        for key, weight in whole.items():
            torch.testing.assert_close(
                found[key], weight, rtol=2e-3, atol=2e-5, msg=lambda told, n=name: f"{n}: {told}"
            )


def test_adaptive_coefficients_are_of_states_without_the_perturbation(made):
    # Of its frozen model in Adaptive RMU, which this is at the first batch.
    settings = {"adaptive_scale": 5.0, "train": True, "max_steps": 2, "disable_dropout": False}
    lat = LAT | {"lat_epsilon": 5.0, "lat_learning_rate": 1.0}
    own, plain = made(RMUTrainer, lat=lat, **settings), made(RMUTrainer, out="plain", lat={}, **settings)
    torch.testing.assert_close(own.coeffs, plain.coeffs, rtol=1e-5, atol=0)
    assert own.state.log_history[0]["forget/norm"] > 1.05 * plain.state.log_history[0]["forget/norm"]
    assert changed(weights(own.model), weights(plain.model))


def test_frozen_layers_are_kept_only_below_what_is_perturbed(made):
    settings = {"trainable_modules": [r"layers\.2\."], "train": True, "optim": "sgd", "learning_rate": 0.05}
    found = {}
    for layers in ([0], [2]):
        for kept in (True, False):
            trainer = made(out=f"{layers}{kept}", lat=LAT | {"lat_layers": layers}, cache_frozen=kept, **settings)
            if kept:
                assert trainer.forward_path.prefix.depth == min(layers[0] + 1, 2)
            found[kept] = weights(trainer.model)
        for name, weight in found[False].items():
            torch.testing.assert_close(found[True][name], weight, rtol=1e-3, atol=1e-5)


def test_accumulation_changes_nothing(made):
    # Of one length: means over tokens of a micro-batch are those of all micro-batches.
    rows = {f"{role}_dataset": [{"text": f"{role} {i:02d} of Ada"} for i in range(8)] for role in ("forget", "retain")}
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        found.append(weights(made(out=f"{size}", given=rows, train=True, learning_rate=0.05, **settings).model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("peft", [False, True])
def test_a_resumed_run_ends_with_the_same_weights(made, peft):
    given = {"peft_config": lora()} if peft else {}
    settings = {"given": given, "max_steps": 4, "retain_loss": "kl"}
    whole = made(out="whole", train=True, save_strategy="steps", save_steps=2, **settings)
    rest = made(out="rest", **settings | {"given": given | {"model": make_model(layers=3)}})
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert not changed(weights(whole.model), weights(rest.model))


def test_under_autocast_weights_get_the_terms_gradient(made):
    # Rounded weights that autocast keeps of a pass without gradients would have none.
    found = {}
    for half in (True, False):
        trainer = made(out=f"{half}", train=True, bf16=half, optim="sgd", learning_rate=0.05, max_steps=1)
        found[half] = weights(trainer.model)
    for name, entered in weights(make_model(layers=3)).items():
        half, whole = (found[half][name] - entered for half in (True, False))
        assert (half - whole).norm() < 0.1 * whole.norm()


def test_it_goes_with_masks_and_sharpness_aware_steps(made):
    trainer = made(train=True, sam_rho=0.05, mask_by="random", weight_decay=0.1)
    masks, entered = trainer.addons["mask"].masks, weights(make_model(layers=3))
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight[~masks[name]], entered[name][~masks[name]])
        assert not torch.equal(weight, entered[name])


@pytest.mark.parametrize("name", CASES)
def test_methods_take_it_or_refuse_it(tmp_path, name):
    case, (config, trainer) = CASES[name], METHODS[name]
    paired, forget, retain = "alternate" in case.roles, FORGET, RETAIN
    if paired or case.prompts:
        forget = [(asked if case.prompts else halved)(row) for row in forget]
        retain = [asked(row) for row in retain] if case.prompts else retain
    alternates = [
        {**row, "completion": " No"} for row in forget for _ in range(case.settings.get("num_alternates", 1))
    ]
    settings = {"retain_loss": case.retain_losses[-1], "max_steps": 1, **case.settings}

    def run():
        made = trainer(
            model=case.start(),
            args=make_args(config, tmp_path, lat_epsilon=0.5, lat_layers=[1], lat_steps=2, **settings),
            forget_dataset=forget,
            retain_dataset=None if settings["retain_loss"] == "none" else retain,
            alternate_dataset=alternates if paired else None,
            ref_models=case.others and case.others(),
            processing_class=make_tokenizer(),
        )
        made.train()
        # What is made likely is what is to be forgotten.
        assert made.train_dataset.roles["forget"]["labels"] == made.given_rows["forget"]["labels"]
        return made.state.log_history[0]

    if "forget" not in case.roles:
        with pytest.raises(ValueError, match=rf"LAT perturbs forget rows .*, and {name} trains on none"):
            run()
        return
    if trainer.replaces_answers(make_args(config, tmp_path, **settings)):
        with pytest.raises(ValueError, match=rf"{name} has other answers in their place"):
            run()
        return
    found = run()
    assert found["lat/elicited_nll"] < found["lat/nll"]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt", "bloom", "gpt_neox", "mixtral", "mamba2"])
def test_layers_of_other_architectures_are_shifted_as_a_hook_would(name):
    torch.manual_seed(0)
    model = small(name, dropout=0.0).eval()
    part = RoleCollator(0).pad([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 8]}])
    part["index"] = torch.arange(2)
    real = RealTokens.of(part)
    by = torch.randn(len(real.row), model.config.get_text_config().hidden_size)
    inputs = {name: part[name] for name in ("input_ids", "attention_mask")}
    dense = torch.zeros(2, 4, by.shape[-1])
    dense[real.row, real.column] = by
    layer = next(module for name, module in model.named_modules() if name.endswith(".1"))
    plain = model(**inputs, use_cache=False).logits

    def add(module, args, output):
        return output + dense if torch.is_tensor(output) else (output[0] + dense, *output[1:])

    hook = layer.register_forward_hook(add)
    expected = model(**inputs, use_cache=False).logits
    hook.remove()
    (call,) = one_pass({"forget": part}, {"forget": real})
    with Shifts("forget", {1: by}).entered(model, call):
        found = model(**call.inputs, use_cache=False).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)
    assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    assert unwrapped(model) is model


@pytest.mark.parametrize(
    ("trainer", "settings", "told"),
    [
        (NPOTrainer, {"lat_epsilon": -1.0}, "lat_epsilon=-1.0; give a finite number at least 0"),
        (
            NPOTrainer,
            {"lat_epsilon": None},
            "lat_layers, lat_steps, lat_learning_rate would have no effect: give `lat_eps",
        ),
        (NPOTrainer, {"lat_steps": 0}, "lat_steps=0; give a whole number of at least 1"),
        (NPOTrainer, {"lat_learning_rate": 0.0}, "lat_learning_rate=0.0"),
        (NPOTrainer, {"lat_tokens": "answer"}, "lat_tokens='answer'; allowed: 'all', 'prompt'"),
        (NPOTrainer, {"lat_layers": 1}, r"lat_layers=1; give a list of layers"),
        (NPOTrainer, {"lat_layers": [1, 1]}, r"lat_layers=\[1, 1\]; give a list of layers, counted from 0, each once"),
        (NPOTrainer, {"lat_layers": []}, r"lat_layers=\[\]"),
        (RMUTrainer, {"layer_id": 1}, "lat_layers: layer 2 is above layer 1, the last that rmu reads of forget rows"),
        (RetrainTrainer, {}, "LAT perturbs forget rows as they go through the model, and retrain trains on none"),
        (IdkNLLTrainer, {}, "and idk_nll trains on none"),
        # It would make likely what the model learns to say.
        (JensUnTrainer, {}, "LAT makes the forget answers likely, and jensun has other answers in their place"),
        (
            AmnesiacTrainer,
            {"variant": "relabel", "relabel_with": "refusal"},
            "LAT makes the forget answers likely, and amnesiac has other answers in their place",
        ),
        (FisherTrainer, {}, "LAT takes part in training steps, and fisher has none of the usual kind"),
        (NPOTrainer, {"torch_compile": True, "fused_losses": False}, "which torch_compile would compile anew"),
        (NPOTrainer, {"optim": "lomo"}, "LAT takes several backward passes, and optim='lomo' steps within"),
        (
            NPOTrainer,
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "LAT takes several backward passes, and reentrant checkpointing cuts",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(made, model_path, unloaded, trainer, settings, told):
    given = {"model": model_path, "processing_class": make_tokenizer()}
    lat = LAT | {"lat_layers": [0, 2]} | {name: value for name, value in settings.items() if name.startswith("lat_")}
    rest = {name: value for name, value in settings.items() if name not in lat}
    retain = {RMUTrainer: "states"}.get(trainer, "nll")
    with pytest.raises(ValueError, match=told):
        made(trainer, given=given, lat=lat, **{"retain_loss": retain} | rest)


def test_rows_without_a_prompt_have_none_to_perturb(made, unloaded, model_path):
    given = {"model": model_path, "forget_dataset": [ROWS["forget_dataset"][0], {"text": "secret"}]}
    with pytest.raises(ValueError, match=r"lat_tokens='prompt', and forget row 1 has no prompt"):
        made(given=given, lat_tokens="prompt")


@pytest.mark.parametrize(
    ("trainer", "settings", "told"),
    [
        (NPOTrainer, {"lat_layers": [3]}, "lat_layers=3; the model has 3 layers: give 0 to 2"),
        # Retain rows go on to the head, forget rows do not.
        (
            RMUTrainer,
            {"layer_id": 1, "layer_ids": [1], "kl_coeff": 1.0, "lat_layers": [2]},
            "layer 2 is above layer 1, the",
        ),
    ],
)
def test_layers_that_change_nothing_are_refused(made, trainer, settings, told):
    lat = LAT | {"lat_layers": settings["lat_layers"]}
    with pytest.raises(ValueError, match=told):
        made(trainer, lat=lat, **{name: value for name, value in settings.items() if name != "lat_layers"})


def test_a_method_that_takes_forget_rows_another_way_is_refused(made):
    class Own(GATrainer):
        def role_rows(self, model, inputs):
            parts = self.parts_of(inputs)
            with self.addons.around_policy(model, parts):
                return (
                    super().build_forward(model, self.args, self.needs_of(self.args), "one").policy(model, parts, {})
                )

    with pytest.raises(ValueError, match="LAT: ga takes no forget rows through layer 0 by the forward path"):
        made(Own, train=True)
