# SPDX-License-Identifier: Apache-2.0
"""RMU: only what is read is computed, and what is computed is what the whole model and a second one would give."""

import copy
import re

import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from torch.utils._python_dispatch import TorchDispatchMode

from hf_unlearn import GATrainer, RMUConfig, RMUTrainer
from hf_unlearn.hub.push import published_files
from hf_unlearn.methods.rmu.trainer import read_control
from hf_unlearn.reference import AdapterReference, LiveReference, TwinReference
from hf_unlearn.reference.cached import CachedReference


# Rows of any length.
FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABCDEFGH")]
RETAIN = [{"text": f"The {'big ' * (7 - i)}cup {i} is here."} for i in range(7)]
TOPICS = [row | {"topic": "cyber" if i % 3 else "bio"} for i, row in enumerate(FORGET)]
# The third of four layers is read, and it and the one below train.
SETTINGS = {"layer_id": 2, "layer_ids": [1, 2], "steering_coeffs": [200.0], "retain_weight": 10.0}
CHOSEN = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
PLAIN = {"fused_losses": False, "forward_passes": "one", "cache_frozen": False}
VOCABULARY = 100


@pytest.fixture
def build(tmp_path):
    def build(model=None, forget=FORGET, peft_config=None, ref_model=None, trainer_class=RMUTrainer, **kwargs):
        settings = (SETTINGS if trainer_class is RMUTrainer else {}) | {"per_device_train_batch_size": 3} | kwargs
        return trainer_class(
            model=model or make_model(layers=4),
            args=make_args(trainer_class.config_class, tmp_path / "out", **settings),
            forget_dataset=forget,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=peft_config,
            ref_model=ref_model,
        )

    return build


def shake(model, scale=0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


# What is computed


# Forwards of the whole model before the first step, to see what it reads and whether frozen states are constants.
TRIED = 6


class Work:
    """Which layers run, told by their MLPs: a layer whose output is known is called but does nothing."""

    def __init__(self, model):
        self.layers: dict[str, list[int]] = {"policy": [], "reference": []}
        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_hook(lambda *call, number=number: self.note(number))

    def note(self, number):
        self.layers["policy" if torch.is_grad_enabled() else "reference"].append(number)


def test_a_step_runs_the_trained_layers_and_no_other(build):
    trainer = build(max_steps=4, forward_passes="one")
    work = Work(trainer.model)
    trainer.train()
    assert work.layers["policy"] == [0] + [1, 2] * 4
    assert type(trainer.reference) is CachedReference
    # Before the first step: the model and its frozen layer are tried; a look at two tokens; the frozen layer, once for
    # the shape and once a set of rows; then what the reference says of the retain rows, from the frozen layer's states
    # on.
    assert work.layers["reference"].count(3) == TRIED
    assert work.layers["reference"][-2:] == [1, 2]
    again = build(max_steps=4, forward_passes="one")
    work = Work(again.model)
    again.train()
    assert work.layers["policy"] == [0] + [1, 2] * 4
    assert work.layers["reference"].count(2) <= TRIED + 2, "the cached states are there"


def test_the_twin_runs_the_same_layers_again_for_retain_rows(build):
    trainer = build(max_steps=2, reference="live", forward_passes="one")
    work = Work(trainer.model)
    trainer.train()
    assert work.layers["policy"] == [0] + [1, 2] * 2
    assert work.layers["reference"][-4:] == [1, 2] * 2
    assert work.layers["reference"].count(3) == TRIED


def test_with_kl_only_kept_rows_go_to_the_head(build):
    trainer = build(max_steps=2, kl_coeff=0.5)
    assert trainer.forward_path.shape == "split"
    work = Work(trainer.model)
    trainer.train()
    assert work.layers["policy"] == [0] + [1, 2, 1, 2, 3] * 2


class Widths(TorchDispatchMode):
    """The last dimensions of whatever is computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                self.seen.add(tensor.shape[-1])
        return result


@pytest.mark.parametrize("settings", [{}, {"kl_coeff": 0.5}])
def test_the_head_is_not_multiplied_with(build, settings):
    trainer = build(reference="live", **settings)
    with Widths() as widths:
        trainer.compute_loss(trainer.model, train_batch(trainer, range(3))).backward()
    assert 32 in widths.seen
    assert (VOCABULARY in widths.seen) == bool(settings)


def test_nothing_but_the_chosen_matrices_has_a_gradient_or_an_optimizer_state(build):
    trainer = build(max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == CHOSEN
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(CHOSEN)
    trainer = build(reference="live", cache_frozen=False)
    trainer.compute_loss(trainer.model, train_batch(trainer, range(3))).backward()
    assert {name for name, p in trainer.model.named_parameters() if p.grad is not None} == CHOSEN


def test_by_default_the_layer_and_the_two_below_train(build):
    trainer = build(model=make_model(layers=5), layer_id=3, layer_ids=None)
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2, 3)}
    assert RMUConfig(layer_id=1, report_to="none").trained_layers == [0, 1]


# The whole model and a second one give the same


POISON = {"poison_prefix": "XYZ", "poison_ratio": 0.25}
VARIANTS = {
    "default": {},
    "no retain rows": {"retain_loss": "none"},
    "kl": {"kl_coeff": 0.5},
    "adaptive": {"adaptive_scale": 500.0},
    "topics": {"forget": TOPICS, "steering_coeffs": [200.0, 50.0], "alphas": [1.0, 4.0]},
    "poisoned": POISON | {"poison_weight": 4.0},
    "poisoned, kl, topics": POISON | {"forget": TOPICS, "kl_coeff": 0.5, "use_kl_poison": True},
    "lowest layer": {"layer_id": 0, "layer_ids": None},
    "highest layer": {"layer_id": 3, "layer_ids": [3]},
}
PATHS = {
    "cache": {},
    "twin": {"reference": "live"},
    "one": {"forward_passes": "one"},
    "split": {"forward_passes": "split"},
    "packed": {"forward_passes": "packed"},
    "frozen layers computed": {"cache_frozen": False},
    "checkpointing": {"gradient_checkpointing": True, "cache_frozen": False},
    "checkpointing, frozen layers from disk": {"gradient_checkpointing": True},
    "wider batches": {"pad_to_multiple_of": 16, "forward_passes": "split"},
}


def outcome(trainer):
    """Losses and weights of three steps with plain SGD: Adam would turn the sign of rounding into a whole step."""
    before = weights(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "forget/loss" in entry]
    assert len(logs) == 3
    assert changed(before, weights(trainer.model))
    names = [name for name in logs[0] if name == "loss" or "/" in name]
    return {name: [entry[name] for entry in logs] for name in names}, weights(trainer.model)


def assert_same(found, wanted):
    assert found[0].keys() == wanted[0].keys()
    for name, values in wanted[0].items():
        assert found[0][name] == pytest.approx(values, rel=2e-4, abs=1e-6), name
    for name, weight in wanted[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-5, msg=name)


def compared(variant) -> dict:
    """A reference of its own, where the method compares with one."""
    return {} if VARIANTS[variant].get("retain_loss") == "none" else {"ref_model": make_model(layers=4)}


SGD = {"optim": "sgd", "learning_rate": 10.0, "max_grad_norm": 0.0, "max_steps": 3}
ADAPTER_SGD = SGD | {"learning_rate": 0.5, "max_grad_norm": 1.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_path_trains_what_the_whole_model_trains(build, variant):
    settings = VARIANTS[variant] | SGD
    wanted = outcome(build(**compared(variant), **settings, **PLAIN))
    # Some movement is needed for the retain term to say anything.
    assert settings.get("retain_loss") == "none" or max(wanted[0]["retain/loss"]) > 1e-5
    for name, path in PATHS.items():
        if settings.get("retain_loss") == "none":
            path = {key: value for key, value in path.items() if key != "reference"}
        try:
            assert_same(outcome(build(**settings, **path)), wanted)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_whole_model(build, variant):
    results = []
    for path in (PLAIN, {"reference": "live"}):
        trainer = build(**compared(variant), **VARIANTS[variant], **path)
        shake(trainer.model)
        loss = trainer.compute_loss(trainer.model.eval(), train_batch(trainer, range(3)))
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-4, atol=1e-6)


def test_every_reference_of_an_adapter_says_the_same(build):
    wanted = None
    for form, kind in (
        (AdapterReference, {"reference": "adapter"}),
        (CachedReference, {"reference": "cache"}),
        (LiveReference, {"reference": "live"}),
        (LiveReference, {"ref_model": make_model(layers=4)}),
        (AdapterReference, {"reference": "adapter", "cache_frozen": False}),
        (AdapterReference, {"reference": "adapter", "fused_losses": False}),
    ):
        trainer = build(peft_config=lora(), **kind, **ADAPTER_SGD)
        assert type(trainer.reference) is form
        found = outcome(trainer)
        wanted = wanted or found
        assert_same(found, wanted)


def test_an_adapter_that_came_in_trained_is_held_to_itself(build):
    from peft import get_peft_model

    results = []
    for reference in ("adapter", "cache", "live"):
        model = get_peft_model(make_model(layers=4), lora())
        shake(model, 0.3)
        trainer = build(model=model, reference=reference, **ADAPTER_SGD)
        results.append(outcome(trainer))
        assert results[-1][0]["retain/loss"][0] < 1e-9
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize("fresh", [True, False])
def test_frozen_parts_of_an_adapter_stay_frozen_when_the_reference_is_asked(build, fresh):
    from peft import get_peft_model

    model = make_model(layers=4) if fresh else get_peft_model(make_model(layers=4), lora())
    trainer = build(model=model, peft_config=lora() if fresh else None, cache_frozen=False, max_steps=1)
    with_gradient = []
    trainer.add_callback(watch_gradients(trainer, with_gradient))
    trainer.train()
    (names,) = with_gradient
    assert names
    assert all("layers.1." in name or "layers.2." in name for name in names)


def watch_gradients(trainer, into):
    from transformers import TrainerCallback

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            into.append({name for name, p in trainer.model.named_parameters() if p.grad is not None})

    return Gradients()


def test_a_twin_of_a_head_is_not_the_head_that_trains(build):
    # The head is what KL compares with; it must be the one that came in.
    trainer = build(trainer_class=GATrainer, retain_loss="kl", reference="live", trainable_modules=["lm_head"])
    assert type(trainer.reference) is TwinReference
    shake(trainer.model, 0.5)
    other = build(trainer_class=GATrainer, retain_loss="kl", ref_model=make_model(layers=4))
    other.model.load_state_dict(trainer.model.state_dict())
    found, wanted = (
        t.role_rows(t.model, train_batch(t, range(3)))["retain"].kl_to_reference for t in (trainer, other)
    )
    assert wanted.item() > 0.5
    torch.testing.assert_close(found, wanted)


def test_a_second_call_of_train_goes_on(build):
    trainer = build(max_steps=2)
    trainer.train()
    once = weights(trainer.model)
    trainer.train()
    assert changed(once, weights(trainer.model)) == CHOSEN


def test_without_rows_to_hold_there_is_no_reference(build):
    assert build(retain_loss="none").reference is None


# Topics, coefficients, the control vector


@torch.no_grad()
def states(model, row, layer=2) -> torch.Tensor:
    taken = []
    hook = model.model.layers[layer].register_forward_hook(lambda module, args, output: taken.append(output))
    model(torch.tensor([row["input_ids"]]))
    hook.remove()
    return taken[0][0].double()


def drawn(topics: int, seed: int = 42) -> torch.Tensor:
    vectors = torch.rand((topics, 32), generator=torch.Generator().manual_seed(seed)).double()
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("coeffs", [[200.0, 30.0], [70.0]])
@pytest.mark.parametrize("alphas", [[0.5, 4.0], [3.0], None])
def test_topics_have_vectors_coefficients_and_weights_of_their_own(build, coeffs, alphas):
    trainer = build(
        forget=TOPICS, steering_coeffs=coeffs, alphas=alphas, reference="live", forget_weight=0.7, kl_coeff=0.0,
        poison_prefix="XYZ", poison_ratio=0.25, poison_weight=2.0,
    )  # fmt: skip
    entered, policy = make_model(layers=4), trainer.model.eval()
    shake(policy)
    pairs = [trainer.train_dataset[position] for position in range(5)]
    topics = [pair["forget"]["topic"] for pair in pairs]
    assert set(topics) == {0, 1}
    texts = [make_tokenizer().decode(pair["forget"]["input_ids"]) for pair in pairs]
    # "bio" comes first in the alphabet, and holds rows 0, 3 and 6: A, D and G.
    assert [("Who is A" in t or "Who is D" in t or "Who is G" in t) for t in texts] == [t == 0 for t in topics]

    vectors = drawn(2)
    forget, retain, poisoned = [], [], []
    for pair, topic in zip(pairs, topics, strict=True):
        coeff = coeffs[topic if len(coeffs) > 1 else 0]
        forget.append((states(policy, pair["forget"]) - coeff * vectors[topic]).square())
        weight = 1.0 if alphas is None else alphas[topic if len(alphas) > 1 else 0]
        for into, role in ((retain, "retain"), (poisoned, "poisoned")):
            into.append(weight * (states(policy, pair[role]) - states(entered, pair[role])).square())
    parts = [torch.cat(part).mean().item() for part in (forget, retain, poisoned)]
    expected = 0.7 * parts[0] + 10 * parts[1] + 2 * parts[2]
    loss = trainer.compute_loss(policy, train_batch(trainer, range(5)))
    assert loss.item() == pytest.approx(expected, rel=2e-5)
    for name, part in zip(("forget", "retain", "poisoned"), parts, strict=True):
        assert trainer.meters.last(f"{name}/loss", trainer.accelerator) == pytest.approx(part, rel=2e-5)


def test_kl_is_added_with_its_coefficient_on_kept_rows(build):
    trainer = build(kl_coeff=0.5, reference="live", poison_prefix="XYZ", poison_ratio=0.25, poison_weight=2.0)
    entered, policy = make_model(layers=4), trainer.model.eval()
    shake(policy, 0.3)
    pairs = [trainer.train_dataset[position] for position in range(3)]
    for role in ("retain", "poisoned"):
        distances, tokens = [], []
        for pair in pairs:
            row = pair[role]
            distances.append((states(policy, row) - states(entered, row)).square())
            with torch.no_grad():
                ours, theirs = (
                    model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
                    for model in (policy, entered)
                )
            kl = (theirs.exp() * (theirs - ours)).sum(-1)
            tokens += [kl[t - 1].item() for t, label in enumerate(row["labels"]) if t and label != -100]
        kl = sum(tokens) / len(tokens)
        assert kl > 1e-3
        expected = torch.cat(distances).mean().item() + 0.5 * kl
        trainer.compute_loss(policy, train_batch(trainer, range(3)))
        assert trainer.meters.last(f"{role}/loss", trainer.accelerator) == pytest.approx(expected, rel=2e-5)


def test_padding_counts_nowhere(build):
    trainer = build(reference="live")
    shake(trainer.model)
    batch = train_batch(trainer, range(3))
    loss = trainer.compute_loss(trainer.model, batch)
    width = batch["input_ids"].shape[1]
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < width
    wider = {
        key: torch.nn.functional.pad(value, (0, 9), value=-100 if key == "labels" else 0)
        if value.dim() == 2
        else value
        for key, value in batch.items()
    }
    wider["input_ids"][wider["attention_mask"] == 0] = 55
    torch.testing.assert_close(trainer.compute_loss(trainer.model, wider), loss)


def test_adaptive_coefficients_are_taken_from_the_first_batch_and_stay(build):
    trainer = build(adaptive_scale=5.0, max_steps=3, forget=TOPICS, per_device_train_batch_size=8)
    pairs = [trainer.train_dataset[position] for position in range(8)]
    model = copy.deepcopy(trainer.model)
    expected = []
    for topic in (0, 1):
        rows = [states(model, pair["forget"]) for pair in pairs if pair["forget"]["topic"] == topic]
        expected.append(5 * torch.cat(rows).norm(dim=-1).mean().item())
    trainer.train()
    assert trainer.coeffs.tolist() == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_the_control_vector_is_the_seeds_of_length_one_and_positive(build):
    trainer = build(seed=7)
    torch.testing.assert_close(trainer.control.double(), drawn(1, 7))
    assert (trainer.control >= 0).all()
    assert trainer.control.norm().item() == pytest.approx(1)
    assert not torch.equal(build(seed=8).control, trainer.control)
    # Whatever else is drawn before.
    torch.manual_seed(99)
    assert torch.equal(build(seed=7).control, trainer.control)


def test_a_saved_model_tells_where_it_was_steered(build, tmp_path):
    trainer = build(forget=TOPICS, adaptive_scale=5.0, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    wanted = trainer.coeffs[:, None] * trainer.control
    assert wanted.isfinite().all()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        assert torch.equal(read_control(folder), wanted.cpu())
    # With it, whoever has the model could find what was forgotten: a push leaves it at home.
    assert [file.name for file in published_files(tmp_path / "out") if "state" in file.name] == []
    with pytest.raises(ValueError, match=r"out/none.* has no control vectors"):
        read_control(tmp_path / "out" / "none")


@pytest.mark.parametrize("adaptive", [None, 5.0])
def test_a_resumed_run_steers_where_it_steered(build, tmp_path, adaptive):
    settings = {"save_strategy": "steps", "save_steps": 2, "adaptive_scale": adaptive, "forget": TOPICS}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    control, coeffs = whole.control.cpu(), whole.coeffs.cpu()
    resumed.control = torch.zeros_like(resumed.control)
    resumed.coeffs = torch.full_like(resumed.coeffs, 3.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert torch.equal(resumed.control, control)
    assert torch.equal(resumed.coeffs, coeffs)
    assert not changed(weights(whole.model), weights(resumed.model))


# Whether it can move, and did


def test_how_long_activations_are_is_told_and_a_shorter_control_vector_is_warned_of(build, caplog):
    trainer = build(max_steps=2, steering_coeffs=[1e-3])
    trainer.train()
    norm = trainer.state.log_history[0]["forget/norm"]
    line = next(r.getMessage() for r in caplog.records if "activations of forget tokens" in r.getMessage())
    median, mean = (float(found) for found in re.findall(r"norm of ([0-9.e-]+) \(mean ([0-9.e-]+)\)", line)[0])
    assert mean == pytest.approx(norm, rel=1e-3)
    assert "steering_coeffs: 0.001 is less than the activations' norm at layer 2" in caplog.text
    assert f"Take steering_coeffs of about {5 * median:.3g} for this model" in caplog.text
    assert caplog.text.count("activations of forget tokens") == 1


@pytest.mark.parametrize(("rate", "moved"), [(1e-8, False), (1e-2, True)])
def test_a_loss_that_stays_is_told_with_the_settings_that_matter(build, caplog, rate, moved):
    trainer = build(max_steps=12, learning_rate=rate, retain_weight=0.1, steering_coeffs=[0.5])
    trainer.train()
    losses = [entry["forget/loss"] for entry in trainer.state.log_history if "forget/loss" in entry]
    assert (losses[-1] < 0.95 * losses[0]) == moved
    assert ("the activations were hardly steered. Raise learning_rate (1e-08)" in caplog.text) != moved
