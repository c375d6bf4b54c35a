# SPDX-License-Identifier: Apache-2.0
"""Add-ons in real runs: a weight mask, sharpness-aware steps, a mean of weights; each as small as it can be."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, weights
from transformers import TrainerCallback

from hf_unlearn import FisherConfig, FisherTrainer, GAConfig, GATrainer, MUAlignConfig, MUAlignTrainer, RMUTrainer
from hf_unlearn.addons.addon import WEIGHTS, AddOn
from hf_unlearn.addons.settings import AddOnSettings
from hf_unlearn.training.addon_checks import check_engine


FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(8)]


class Mask(AddOn):
    """Every other entry of every weight stays as it is."""

    name, title = "mask", "The weight mask"

    def setup(self, entry):
        self.kept = {}

    def before_optimizer(self, step):
        for name, weight in step.parameters.items():
            self.kept[name] = weight.detach()[..., ::2].clone()
            weight.grad[..., ::2] = 0

    def after_optimizer(self, step):
        with torch.no_grad():
            for name, weight in step.parameters.items():
                weight[..., ::2] = self.kept[name]


class Sharpness(AddOn):
    """The gradients of a step are those at the weights plus `rho` along the gradient, of length 1."""

    name, title, rho = "sharpness", "Sharpness-aware minimisation", 0.05

    @torch.no_grad()
    def before_optimizer(self, step):
        weights = list(step.parameters.values())
        norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
        step.log("sharpness/norm", norm)
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(weight.grad, alpha=(self.rho / norm).item())
        with torch.enable_grad():
            step.repeat()
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


class Average(AddOn):
    """The result is the mean of the weights after every step."""

    name, title = "average", "The mean of weights"

    def __init__(self):
        self.sums, self.count = {}, 0

    def after_optimizer(self, step):
        self.count += 1
        for name, weight in step.parameters.items():
            self.sums[name] = self.sums.get(name, 0) + weight.detach().double()

    @torch.no_grad()
    def finish(self, trainer):
        weights = dict(trainer.model.named_parameters())
        for name, total in self.sums.items():
            weights[name].copy_(total / self.count)

    def state(self):
        return {"count": self.count, **{f"sums.{name}": total for name, total in self.sums.items()}}

    def load_state(self, state):
        self.count = state.pop("count")
        self.sums = {name.removeprefix("sums."): total for name, total in state.items()}


class Pull(AddOn):
    """A term: weights are pulled to 0, the more the further training is."""

    name, title, requires = "pull", "The pull", frozenset({WEIGHTS})

    def loss(self, model, rows, step):
        return step.progress * sum(weight.square().sum() for weight in step.parameters.values())


class Hooked(AddOn):
    """Hooks inside the optimizer."""

    name, title = "hooked", "The optimizer's hook"

    def __init__(self):
        self.wrapped = self.steps = self.begun = 0

    def before_step(self, step):
        self.begun += 1

    def wrap_optimizer(self, optimizer):
        self.wrapped += 1
        optimizer.register_step_pre_hook(lambda *_: setattr(self, "steps", self.steps + 1))
        return optimizer


class FullOnly(AddOn):
    name, title = "full_only", "Full weights"

    def refuse(self, args, method, adapter):
        if adapter:
            raise ValueError("full_only works on full weights. Leave `peft_config` out.")


KINDS = {kind.name: kind for kind in (Mask, Sharpness, Average, Pull, Hooked, FullOnly)}


@dataclass
class SomeSettings(AddOnSettings):
    some: str | None = field(default=None, metadata={"help": "An add-on of this file."})

    def make_addon(self):
        return None if self.some is None else KINDS[self.some]()


@dataclass
class MoreSettings(AddOnSettings):
    more: str | None = field(default=None, metadata={"help": "Another add-on of this file."})

    def make_addon(self):
        return None if self.more is None else KINDS[self.more]()


def config_of(trainer):
    """The method's config with the add-ons above; by a name of this module, as checkpoints pickle it."""
    name = f"Some{trainer.config_class.__name__}"
    if name not in globals():
        bases = (SomeSettings, MoreSettings, trainer.config_class)
        globals()[name] = dataclass(type(name, bases, {"__module__": __name__}))
    return globals()[name]


@pytest.fixture
def build(tmp_path):
    def build(trainer=GATrainer, peft=False, model=None, out="out", callbacks=None, **settings):
        config = config_of(trainer)
        defaults = {"retain_loss": "nll", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        args = make_args(config, tmp_path / out, reference_cache_dir=str(tmp_path / "cache"), **defaults | settings)
        return trainer(
            model=model or make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=lora(r=4) if peft else None,
            callbacks=callbacks,
        )

    return build


@pytest.mark.parametrize("peft", [False, True])
def test_masked_weights_stay_bit_for_bit(build, peft):
    settings = {"weight_decay": 0.1, "max_steps": 50, "learning_rate": 1e-3, "peft": peft}
    whole = build(some="mask", save_strategy="steps", save_steps=25, **settings)
    entered = {n: w for n, w in weights(whole.model).items() if n in dict(_trained(whole.model))}
    whole.train()
    rest = build(some="mask", out="rest", **settings)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-25")
    for trainer in (whole, rest):
        for name, weight in _trained(trainer.model):
            assert torch.equal(weight[..., ::2], entered[name][..., ::2])
            if weight.dim() > 1:
                assert not torch.equal(weight[..., 1::2], entered[name][..., 1::2])
    assert not changed(weights(whole.model), weights(rest.model))


def _trained(model):
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("peft", [False, True])
def test_a_repeated_step_equals_a_plain_loop(build, peft):
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.5, "max_steps": 2, "peft": peft}
    trainer, loop = build(some="sharpness", **settings), build(out="loop", **settings)
    batches = list(loop.get_train_dataloader())
    trainer.train()

    model = loop.model.train()
    parameters = [weight for _, weight in _trained(model)]
    losses, norms = [], []
    for step in range(2):
        accumulated = batches[2 * step : 2 * step + 2]

        def gradients(accumulated=accumulated):
            total = sum(loop.compute_loss(model, batch) for batch in accumulated) / 2
            return total.item(), torch.autograd.grad(total, parameters)

        loss, first = gradients()
        norm = torch.cat([g.flatten() for g in first]).norm()
        before = [weight.detach().clone() for weight in parameters]
        with torch.no_grad():
            for weight, gradient in zip(parameters, first, strict=True):
                weight += Sharpness.rho * gradient / norm
        _, second = gradients()
        clip = min(1.0, 0.5 / torch.cat([g.flatten() for g in second]).norm().item())
        with torch.no_grad():
            for weight, old, gradient in zip(parameters, before, second, strict=True):
                weight.copy_(old - 0.05 * clip * gradient)
        losses.append(loss)
        norms.append(norm.item())
    for (name, weight), other in zip(_trained(trainer.model), parameters, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-6, msg=name)
    logged = [entry for entry in trainer.state.log_history if "sharpness/norm" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx(losses, abs=1e-4)
    assert [entry["sharpness/norm"] for entry in logged] == pytest.approx(norms, rel=1e-3)
    # What the second passes saw is no mean of the log; their cost is counted.
    assert [e["retain/loss"] - e["forget/nll"] for e in logged] == pytest.approx(losses, abs=1e-4)
    plain = build(out="plain", **settings)
    plain.train()
    assert trainer.state.total_flos == pytest.approx(2 * plain.state.total_flos)


def test_accumulation_changes_nothing_of_a_repeated_step(build):
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = build(
            some="sharpness", per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=2,
            optim="sgd", learning_rate=0.05,
        )  # fmt: skip
        trainer.train()
        found.append(weights(trainer.model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-5)


def test_hooks_of_two_add_ons_go_together(build):
    trainer = build(some="mask", more="sharpness", max_steps=2)
    entered = weights(trainer.model)
    alone = build(more="sharpness", max_steps=2, out="alone")
    for one in (trainer, alone):
        one.train()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight[..., ::2], entered[name][..., ::2])
    assert changed(weights(alone.model), weights(trainer.model))


def test_a_state_goes_on_where_it_was(build):
    whole = build(some="average", max_steps=4, save_strategy="steps", save_steps=2)
    assert whole.changes_at_end
    whole.train()
    rest = build(some="average", max_steps=4, out="rest")
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert rest.addons["average"].count == 4
    assert not changed(weights(whole.model), weights(rest.model))
    stepwise, path = build(max_steps=4, out="stepwise", save_strategy="steps", save_steps=1), []
    stepwise.train()
    from safetensors.torch import load_file

    for step in range(1, 5):
        path.append(load_file(f"{stepwise.args.output_dir}/checkpoint-{step}/model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    mean = torch.stack([one[name].double() for one in path]).mean(0).float()
    torch.testing.assert_close(dict(whole.model.named_parameters())[name].detach(), mean)


@pytest.mark.parametrize(("made", "now", "told"), [("average", None, "with average"), (None, "average", "without av")])
def test_a_checkpoint_with_other_states_is_refused(build, made, now, told):
    first = build(some=made, max_steps=2, save_strategy="steps", save_steps=1)
    first.train()
    with pytest.raises(ValueError, match=f"was made {told}"):
        build(some=now, max_steps=2).train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")


def test_a_methods_state_stands_beside_an_add_ons(build):
    settings = {"some": "average", "layer_id": 1, "max_steps": 2, "retain_loss": None}
    first = build(RMUTrainer, save_strategy="steps", save_steps=1, **settings)
    first.train()
    rest = build(RMUTrainer, seed=0, data_seed=42, out="rest", **settings)
    rest.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")
    assert torch.equal(first.control, rest.control)
    assert not changed(weights(first.model), weights(rest.model))


def test_a_term_is_added_to_the_methods(build):
    trainer, plain = build(some="pull"), build()
    trainer.state.global_step, trainer.state.max_steps = 1, 2
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    squares = sum(weight.square().sum() for weight in plain.model.parameters()).item()
    mine, theirs = (one.compute_loss(one.model, batch).item() for one in (trainer, plain))
    assert mine - theirs == pytest.approx(0.5 * squares, rel=1e-4)


def test_an_optimizer_is_wrapped_once(build):
    trainer = build(some="hooked", max_steps=3)
    trainer.train()
    trainer.train()
    hooked = trainer.addons["hooked"]
    assert (hooked.wrapped, hooked.steps, hooked.begun) == (1, 6, 6)


class Nested(torch.optim.SGD):
    """An optimizer with another one inside."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, lr=1e-2)
        self.optimizer = inner


def test_an_optimizer_around_another_is_made_once(build, monkeypatch):
    made = []
    monkeypatch.setattr(Hooked, "wrap_optimizer", lambda self, inner: made.append(inner) or Nested(inner))
    trainer = build(some="hooked", max_steps=2)
    trainer.create_optimizer_and_scheduler(2)
    trainer.train()
    assert len(made) == 1
    assert type(trainer.optimizer.optimizer) is Nested


def test_what_is_no_optimizer_is_refused(build, monkeypatch):
    monkeypatch.setattr(Hooked, "wrap_optimizer", lambda self, optimizer: None)
    with pytest.raises(ValueError, match="The optimizer's hook: wrap_optimizer returned a NoneType"):
        build(some="hooked").train()


class Sees(TrainerCallback):
    """Keeps the weights as they are at moments of a run."""

    def __init__(self):
        self.at = {}

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.at["step"] = weights(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.at["end"] = weights(model)


def test_callbacks_of_the_user_see_weights_as_add_ons_leave_them(build):
    sees = Sees()
    trainer = build(some="mask", more="average", max_steps=3, callbacks=[sees])
    entered = weights(trainer.model)
    trainer.train()
    for name, weight in sees.at["step"].items():
        assert torch.equal(weight[..., ::2], entered[name][..., ::2])
    assert not changed(sees.at["end"], weights(trainer.model))
    assert changed(sees.at["end"], sees.at["step"])


# What does not go together


@pytest.mark.parametrize(
    ("addon", "settings", "told"),
    [
        ("mask", {"fsdp": "full_shard"}, "The weight mask reads a step's whole gradients, and DeepSpeed and FSDP"),
        ("average", {"fsdp": "full_shard"}, "reads whole weights between steps, and DeepSpeed"),
        ("pull", {"fsdp": "full_shard"}, "The pull reads whole weights"),
        ("hooked", {"fsdp": "full_shard"}, "works inside the optimizer, and DeepSpeed"),
        ("full_only", {"fsdp": "full_shard"}, None),
        ("sharpness", {"fp16": True}, "fp16 scales them"),
        ("average", {"fp16": True}, None),
        ("sharpness", {"optim": "lomo"}, "'lomo' steps within the backward pass"),
        ("hooked", {"optim": "galore_adamw_layerwise"}, "steps within the backward pass"),
        ("pull", {"optim": "lomo"}, None),
        ("average", {"load_best_model_at_end": True}, "load_best_model_at_end"),
    ],
)
def test_what_a_run_does_not_have_is_refused_by_what_hooks_require(addon, settings, told, tmp_path):
    args = make_args(GAConfig, tmp_path)
    for name, value in settings.items():
        setattr(args, name, value)
    if told is None:
        check_engine(args, [KINDS[addon]()])
    else:
        with pytest.raises(ValueError, match=told):
            check_engine(args, [KINDS[addon]()])


def test_a_config_refuses_it_when_it_is_made(build):
    with pytest.raises(ValueError, match=r"The weight mask reads .* within the backward pass"):
        build(some="mask", optim="lomo")


def test_an_add_on_refuses_adapters_before_a_model_is_loaded(build, model_path, unloaded):
    with pytest.raises(ValueError, match="full_only works on full weights"):
        build(some="full_only", peft=True, model=model_path)


@pytest.mark.parametrize("name", ["mask", "pull", "hooked"])
def test_a_method_without_steps_takes_none(name, build, model_path, unloaded):
    assert FisherTrainer.config_class is FisherConfig
    with pytest.raises(ValueError, match="takes part in training steps, and fisher has none"):
        build(FisherTrainer, some=name, model=model_path, gradient_accumulation_steps=1)


def test_one_add_on_alone_takes_the_backward_pass_apart(build, monkeypatch):
    monkeypatch.setattr(Pull, "around_backward", lambda self, terms, backward: None, raising=False)
    assert MUAlignTrainer.config_class is MUAlignConfig
    with pytest.raises(ValueError, match=r"The pull and grad_ortho each take the backward pass apart"):
        build(MUAlignTrainer, some="pull", grad_ortho="project")


def test_the_same_add_on_twice_is_refused(build):
    with pytest.raises(ValueError, match="have the same name: mask, mask"):
        build(some="mask", more="mask")


@pytest.mark.parametrize(("name", "told"), [("retain", "is a role's"), ("alternate", "is a role's"), ("a.b", "a dot")])
def test_a_name_that_hides_a_term_or_a_state_is_refused(build, monkeypatch, name, told):
    monkeypatch.setattr(Pull, "name", name)
    with pytest.raises(ValueError, match=rf"The pull is called '{name}', which .*{told}"):
        build(some="pull")
