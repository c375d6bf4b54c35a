# SPDX-License-Identifier: Apache-2.0
"""Every cheap path trains the same model as the plain one: all logits, a second model in memory, one padded pass."""

import errno
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import TESTS, make_args, make_model, make_tokenizer, weights

from hf_unlearn import METHODS
from hf_unlearn.reference.cached import CachedReference


# Rows of any length: short against long, and more of one role than of the other.
FORGET = [{"prompt": f"Who is {n}?", "completion": f" {n} is {'very ' * i}old."} for i, n in enumerate("ABCDEF")]
RETAIN = [{"text": f"The {'big ' * (7 - i)}cup {i} is here."} for i in range(7)]
PLAIN = {"fused_losses": False, "forward_passes": "one", "reference": "live"}
CASES = [("ga", "none"), ("ga", "nll"), ("ga", "kl"), ("npo", "none"), ("npo", "nll"), ("npo", "kl")]
# Their forget terms alone are their own.
TERMS = [(name, "none") for name in ("simnpo", "wga", "satimp", "tnpo", "ceu", "undial", "ihl", "unilogit")]
TERMS += [(name, "none") for name in ("unlikelihood", "max_entropy")]
TERMS += [("pdu", "nll")]
PATHS = {
    "fused, live": {"reference": "live", "forward_passes": "one"},
    "fused, cache": {"reference": "cache", "forward_passes": "one"},
    "fused, cache, split": {"reference": "cache", "forward_passes": "split"},
    "fused, cache, packed": {"reference": "cache", "forward_passes": "packed"},
    "logits, live, packed": PLAIN | {"forward_passes": "packed"},
}


@pytest.fixture
def build(tmp_path):
    def build(method="npo", retain_loss="kl", adapter=False, model=None, **kwargs):
        from peft import LoraConfig

        config, trainer = METHODS[method]
        settings = {"retain_loss": retain_loss, "max_steps": 2, "per_device_train_batch_size": 3}
        return trainer(
            model=model or make_model(),
            args=make_args(config, tmp_path / "out", **{**settings, **kwargs}),
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None,
        )

    return build


def trained(trainer):
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, weights(trainer.model)


def assert_same_run(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-4, abs=1e-6)
    for name, weight in wanted[1].items():
        torch.testing.assert_close(
            found[1][name], weight, rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("method", "retain_loss"), CASES)
def test_two_steps_end_in_the_same_weights(build, method, retain_loss, accumulation):
    # SGD: Adam would turn the sign of a gradient of 1e-9 into a whole step.
    settings = {"gradient_accumulation_steps": accumulation, "optim": "sgd", "learning_rate": 0.05}
    wanted = trained(build(method, retain_loss, **PLAIN, **settings))
    assert len(wanted[0]) == 2
    for name, path in PATHS.items():
        if not build(method, retain_loss).reference_roles_of(build(method, retain_loss).args):
            path = {key: value for key, value in path.items() if key != "reference"}
        try:
            assert_same_run(trained(build(method, retain_loss, **path, **settings)), wanted)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize(("method", "retain_loss"), [("ga", "kl"), ("npo", "nll"), ("npo", "kl"), ("undial", "none")])
def test_two_steps_of_an_adapter_end_in_the_same_weights(build, method, retain_loss):
    settings = {"adapter": True, "optim": "sgd", "learning_rate": 0.5, "max_steps": 3}
    wanted = trained(build(method, retain_loss, **{**PLAIN, "reference": "adapter"}, **settings))
    for path in ({"reference": "adapter"}, {"reference": "cache"}, {"reference": "live"}):
        assert_same_run(trained(build(method, retain_loss, **path, **settings)), wanted)


@pytest.mark.parametrize(("method", "retain_loss"), CASES + TERMS)
def test_loss_and_gradients_equal_the_plain_path(build, method, retain_loss):
    results = []
    for path in (PLAIN, {"reference": "live"}):
        trainer = build(method, retain_loss, **path)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.05)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        loss = trainer.compute_loss(trainer.model.eval(), batch)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-4, atol=1e-6)


# The cached reference


class Passes:
    """Forward passes of the policy: those with a gradient, and those without."""

    def __init__(self, model):
        self.trained = self.read = 0
        model.register_forward_hook(self.count)

    def count(self, module, args, output):
        if torch.is_grad_enabled():
            self.trained += 1
        else:
            self.read += 1


@pytest.mark.usefixtures("untried")
def test_a_second_run_makes_no_reference_pass(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    head_check = 2
    for expected in (head_check + 1 + 1, head_check):
        trainer = build(per_device_eval_batch_size=8, reference="cache", max_steps=5)
        passes = Passes(trainer.model)
        trainer.train()
        # One policy pass a step and none for the reference; before them, one pass a batch of eight reference rows.
        assert passes.trained == 5
        assert passes.read == expected


def folders(cache: str) -> set[str]:
    return {path.name for path in (Path(cache) / "reference").iterdir() if path.is_dir()}


def test_whatever_changes_the_predictions_changes_the_key(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    build().train()
    (first,) = folders(tmp_path)
    build(learning_rate=1e-3, beta=0.5, seed=3).train()
    assert folders(tmp_path) == {first}, "a sweep reads what is there"
    seen = {first}
    for change in ({"model": make_model(seed=1)}, {"max_length": 40}, {"retain_loss": "nll"}, {"method": "ga"}):
        build(**change).train()
        new = folders(tmp_path) - seen
        assert len(new) == 1, change
        seen |= new


@pytest.mark.parametrize("frozen", [False, True])
def test_only_rows_that_training_sees_are_computed(frozen, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    config, trainer = METHODS["npo"]
    many = [{"text": f"The cup number {i} is here."} for i in range(40)]
    results = []
    for path in (PLAIN, {"trainable_modules": ["lm_head"]} if frozen else {}):
        settings = {"retain_loss": "kl", "max_steps": 4, "optim": "sgd", "learning_rate": 0.05, **path}
        if frozen:
            settings["trainable_modules"] = ["lm_head"]
        args = make_args(config, tmp_path / "out", **settings)
        run = trainer(
            model=make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=many,
            processing_class=make_tokenizer(),
        )
        results.append(trained(run))
    assert_same_run(results[1], results[0])
    seen = {run.train_dataset[p]["retain"]["index"] for p in range(12)}
    kept = [run.reference.store.layout["retain.hidden"].lengths]
    if frozen:
        kept.append(run.forward_path.prefix.store.layout["retain.states"].lengths)
    for lengths in kept:
        assert {i for i, length in enumerate(lengths) if length} == seen
        assert len(seen) == 12


def test_a_full_disk_is_told_before_anything_is_computed(build, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    trainer = build(seed=5, model=make_model(seed=11))
    with pytest.raises(OSError, match="reference_cache_dir") as raised:
        trainer.train()
    assert raised.value.errno == errno.ENOSPC
    assert trainer.state.global_step == 0


def test_resuming_without_the_cache_is_refused(build, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "here"))
    build(save_strategy="steps", save_steps=1).train()
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="cannot be made again on resume"):
        build(max_steps=4).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


def test_a_reference_asked_for_too_early_is_an_error(build):
    trainer = build(reference="cache")
    with pytest.raises(ValueError, match="before training"):
        trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[0]]))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import conftest
from test_engine import run_alone
from hf_unlearn.reference.cached import CachedReference
predict, calls = CachedReference.predict, []
def die(self, *args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(self, *args)
CachedReference.predict = die
run_alone({out!r})
"""


def run_alone(out):
    config, trainer = METHODS["npo"]
    args = make_args(config, out, retain_loss="kl", max_steps=2, per_device_eval_batch_size=2)
    run = trainer(
        model=make_model(), args=args, forget_dataset=FORGET, retain_dataset=RETAIN, processing_class=make_tokenizer()
    )
    run.train()
    return run


def test_a_pass_that_was_killed_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    code = KILLED.format(tests=str(TESTS), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    # What it left carries no name that is looked for.
    assert not [f for f in folders(tmp_path / "cache") if len(f) == 64]
    again = run_alone(tmp_path / "out")
    assert isinstance(again.reference, CachedReference)
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "fresh"))
    fresh = run_alone(tmp_path / "out2")
    assert_same_run(
        (again.state.log_history[0]["loss"], weights(again.model)),
        (fresh.state.log_history[0]["loss"], weights(fresh.model)),
    )


# Frozen layers

FROZEN = {
    "head alone": {"trainable_modules": ["lm_head"]},
    "upper layers": {"trainable_modules": [r"layers\.1\.", r"model\.norm", "lm_head"]},
    "upper layers, packed": {"trainable_modules": [r"layers\.1\."], "forward_passes": "packed"},
    "upper layers, split": {"trainable_modules": [r"layers\.1\."], "forward_passes": "split"},
    "upper layers, logits": {"trainable_modules": [r"layers\.1\."], **PLAIN},
}


@pytest.mark.parametrize("what", FROZEN)
def test_frozen_layers_from_disk_train_the_same_weights(build, what):
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 3, **FROZEN[what]}
    wanted = trained(build(cache_frozen=False, **settings))
    run = build(**settings)
    assert run.forward_path.prefix.depth == (2 if what == "head alone" else 1)
    computed = []
    attention = run.model.model.layers[0].self_attn
    attention.register_forward_hook(lambda *args: computed.append(run.state.global_step))
    assert_same_run(trained(run), wanted)
    # The lowest layer runs before the first step, and never again.
    assert computed
    assert not any(computed)
    assert not any("forward" in vars(module) for module in run.model.modules()), "nothing of ours is left on the model"


def test_frozen_layers_below_an_adapter(tmp_path):
    from peft import LoraConfig

    runs = []
    for cache_frozen in (False, True):
        config, trainer = METHODS["npo"]
        args = make_args(
            config, tmp_path / "out", retain_loss="kl", optim="sgd", learning_rate=0.5, cache_frozen=cache_frozen
        )
        adapter = LoraConfig(
            r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[1], task_type="CAUSAL_LM"
        )
        run = trainer(
            model=make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            processing_class=make_tokenizer(),
            peft_config=adapter,
        )
        assert (run.forward_path.prefix is not None) == cache_frozen
        runs.append(trained(run))
    assert_same_run(*runs)


def test_nothing_is_kept_where_everything_trains_or_states_are_random(build, caplog):
    assert build().forward_path.prefix is None
    assert build(model=make_model(tie=True), trainable_modules=["lm_head"]).forward_path.prefix is None
    dropped = make_model()
    for layer in dropped.model.layers:
        layer.self_attn.attention_dropout = 0.1
    run = build(model=dropped, trainable_modules=["lm_head"], disable_dropout=False)
    run.train()
    assert run.forward_path.prefix is None
    assert "computed at every step: they are random in training" in caplog.text


# How rows go through the model


def test_roles_of_very_different_length_get_a_pass_each(build, caplog, tmp_path):
    config, trainer = METHODS["ga"]
    long = [{"text": "word " * 40 + str(i)} for i in range(4)]
    short = [{"text": f"hi {i}"} for i in range(4)]
    args = make_args(config, tmp_path / "out", retain_loss="nll", max_steps=2)
    run = trainer(
        model=make_model(), args=args, forget_dataset=short, retain_dataset=long, processing_class=make_tokenizer()
    )
    assert run.forward_path.shape == "split"
    assert "A forward pass a role: with padding it takes 5" in caplog.text
    passes = Passes(run.model)
    run.train()
    assert passes.trained == 4
    assert build("ga", "nll").forward_path.shape == "one"


def test_packing_is_refused_where_attention_mixes_rows(build, monkeypatch):
    trainer = build(forward_passes="packed", reference="live")
    inner = trainer.model.model.forward

    def without_positions(*args, position_ids=None, **kwargs):
        return inner(*args, **kwargs)

    monkeypatch.setattr(trainer.model.model, "forward", without_positions)
    with pytest.raises(ValueError, match="packed forget rows are not kept apart"):
        trainer.train()
