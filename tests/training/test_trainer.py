# SPDX-License-Identifier: Apache-2.0
"""The trainer around the objectives: one pass, logging, accumulation, what trains, and the guard."""

import math
from collections import Counter

import pytest
import torch
from conftest import changed, lora, make_model, train_batch, weights

from hf_unlearn import GATrainer, NPOTrainer, losses
from hf_unlearn.data.pairing import RolePairs
from hf_unlearn.training.faults import NonFiniteError


# Rows of one length, so that token means do not depend on how rows are grouped.
EQUAL_FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(16)]
EQUAL_RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(24)]


class Forwards:
    """Counts forward passes of a model and the rows in each, those with a gradient (training) and those without."""

    def __init__(self, model):
        self.rows, self.without_grad = [], []
        self.handle = model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs, output):
        (self.rows if torch.is_grad_enabled() else self.without_grad).append(kwargs["input_ids"].shape[0])


# Two short passes before the first step compare the fused head with the model's own.
HEAD_CHECK = [1, 1]


# One pass


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("trainer_class", "retain_loss", "policy_rows", "reference_rows"),
    [
        (GATrainer, "none", 2, None),
        (GATrainer, "nll", 4, None),
        (GATrainer, "kl", 4, 2),
        (NPOTrainer, "none", 2, 2),
        (NPOTrainer, "nll", 4, 2),
        (NPOTrainer, "kl", 4, 4),
    ],
)
def test_a_step_is_one_forward_pass_of_all_roles(
    build, trainer_class, retain_loss, policy_rows, reference_rows, accumulation
):
    trainer = build(
        trainer_class, retain_loss=retain_loss, max_steps=2, gradient_accumulation_steps=accumulation, reference="live"
    )
    policy = Forwards(trainer.model)
    if reference_rows is None:
        assert trainer.reference is None
    else:
        reference = Forwards(trainer.reference.model)
    trainer.train()
    # Two micro-batches an epoch: 4 forget rows in batches of 2.
    assert policy.rows == [policy_rows] * 2 * accumulation
    assert policy.without_grad == HEAD_CHECK
    if reference_rows is not None:
        assert reference.without_grad == [reference_rows] * 2 * accumulation


@pytest.mark.usefixtures("untried")
def test_with_an_adapter_the_reference_is_one_more_pass_of_the_same_model(build):
    trainer = build(given={"peft_config": lora()}, retain_loss="kl", max_steps=3)
    forwards = Forwards(trainer.model.get_base_model())
    trainer.train()
    assert forwards.rows == [4] * 3
    assert forwards.without_grad == [*HEAD_CHECK, *[4] * 3]


def test_rows_of_a_role_are_cut_out_of_the_shared_pass(build):
    trainer = build(retain_loss="nll", reference="live")
    batch = train_batch(trainer, [0, 1])
    rows = trainer.role_rows(trainer.model, batch)
    assert list(rows) == ["forget", "retain"]
    alone = trainer.model(input_ids=batch["input_ids"][2:], attention_mask=batch["attention_mask"][2:]).logits
    torch.testing.assert_close(rows["retain"].logps, losses.sequence_logps(alone, batch["labels"][2:]))
    assert torch.equal(rows["retain"].batch["index"], batch["index"][2:])
    assert torch.equal(rows["forget"].batch["labels"], batch["labels"][:2])


# Logging


def test_logged_components_are_means_over_micro_batches_and_steps(build):
    # With a learning rate of 0 nothing moves, so every logged value can be computed afterwards.
    trainer = build(
        GATrainer,
        given={"ref_model": make_model(seed=7)},
        retain_loss="kl",
        learning_rate=0.0,
        retain_weight=3.0,
        forget_weight=0.5,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=2,
        max_steps=4,
    )
    model, reference = trainer.model.eval(), trainer.reference.model
    trainer.train()
    # Four forget rows: two steps of two micro-batches of one pair an epoch, so one log an epoch.
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    for number, entry in enumerate(logs):
        expected = Counter()
        for position in range(4 * number, 4 * number + 4):
            pair = trainer.train_dataset[position]
            for role, row in pair.items():
                ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
                with torch.no_grad():
                    logits, ref_logits = model(ids).logits.double(), reference(ids).logits.double()
                nll = losses.nll_loss(logits, labels).item()
                loss = -nll
                if role == "retain":
                    loss = losses.kl_to_reference(logits, ref_logits, losses.prediction_mask(labels)).item()
                expected[f"{role}/nll"] += nll / 4
                expected[f"{role}/logps"] += losses.sequence_logps(logits, labels).item() / 4
                expected[f"{role}/loss"] += loss / 4
        expected["loss"] = 0.5 * expected["forget/loss"] + 3.0 * expected["retain/loss"]
        assert {key: entry[key] for key in expected} == pytest.approx(dict(expected), rel=1e-4)


def test_components_of_npo_have_their_names(build):
    trainer = build(retain_loss="kl", max_steps=2)
    trainer.train()
    components = {key for key in trainer.state.log_history[0] if "/" in key}
    assert components == {
        "forget/loss",
        "forget/nll",
        "forget/logps",
        "forget/ref_logps",
        "retain/loss",
        "retain/nll",
        "retain/logps",
    }
    first, second = trainer.state.log_history[:2]
    assert first["forget/loss"] == pytest.approx(2 * math.log(2) / 0.1, rel=1e-5)
    assert first["forget/logps"] == pytest.approx(first["forget/ref_logps"], rel=1e-5)
    assert first["retain/loss"] == pytest.approx(0, abs=1e-6)
    assert second["forget/logps"] < second["forget/ref_logps"]


def test_the_role_left_out_is_not_logged(build):
    trainer = build(GATrainer, retain_loss="none", max_steps=1)
    trainer.train()
    assert not [key for key in trainer.state.log_history[0] if key.startswith("retain/")]


# Accumulation


class FlatPairs(RolePairs):
    """Forget rows alone, without a role: what a plain language-model batch looks like."""

    def __getitem__(self, position):
        return super().__getitem__(position)["forget"]


@pytest.mark.parametrize("batches", ["roles", "flat"])
def test_eight_at_once_equal_four_times_two(build, batches):
    results = {}
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = build(
            GATrainer,
            given={"model": make_model(), "forget_dataset": EQUAL_FORGET, "retain_dataset": EQUAL_RETAIN},
            retain_loss="nll",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            optim="sgd",
            max_grad_norm=0.0,
        )
        if batches == "flat":
            trainer.train_dataset = FlatPairs(trainer.train_dataset.roles, seed=trainer.args.seed)
        before = weights(trainer.model)
        trainer.train()
        results[size] = weights(trainer.model)
        moved = max((results[size][name] - before[name]).abs().max().item() for name in before)
        assert moved > 1e-4
        results[f"log {size}"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for name in results[8]:
        torch.testing.assert_close(results[2][name], results[8][name], rtol=1e-4, atol=1e-6)
    assert results["log 2"] == pytest.approx(results["log 8"], rel=1e-4)


# What is trained


def test_only_the_chosen_modules_train(build):
    trainer = build(retain_loss="kl", trainable_modules=["lm_head"], weight_decay=0.1)
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == {"lm_head.weight"}


def test_patterns_are_regular_expressions_and_may_be_several(build):
    trainer = build(GATrainer, trainable_modules=[r"layers\.1\.mlp\.down_proj", "^model.norm"], max_steps=1)
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == {"model.layers.1.mlp.down_proj.weight", "model.norm.weight"}
    assert build(GATrainer, trainable_modules="norm").args.trainable_modules == ["norm"]


def test_a_tied_head_trains_the_embedding_and_says_so(build, caplog):
    trainer = build(GATrainer, given={"model": make_model(tie=True)}, trainable_modules=["lm_head"], max_steps=1)
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == {"model.embed_tokens.weight"}
    assert "model.embed_tokens.weight trains too" in caplog.text
    assert "what the model reads changes with what it predicts" in caplog.text


def test_patterns_that_match_nothing_are_named_with_what_there_is(build):
    with pytest.raises(ValueError, match=r"\['lm_haed'\] match no parameter.*lm_head.weight"):
        build(GATrainer, trainable_modules=["norm", "lm_haed"])


def test_the_optimizer_holds_only_what_trains(build):
    trainer = build(GATrainer, trainable_modules=["lm_head"], max_steps=1)
    trainer.train()
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(held) == 1
    assert held[0] is trainer.model.lm_head.weight


# Guard


def test_ascent_stops_at_the_limit_and_says_so(build, caplog, tmp_path):
    trainer = build(GATrainer, learning_rate=3e-2, max_steps=50, max_forget_loss=6.0)
    trainer.train()
    steps = trainer.state.global_step
    curve = [entry["forget/nll"] for entry in trainer.state.log_history if "forget/nll" in entry]
    assert 1 < steps < 50
    assert curve[-1] > 6.0 >= max(curve[:-1])
    for text in (trainer.stop_reason, caplog.text):
        assert f"Stopped at step {steps}" in text
        assert "max_forget_loss=6.0" in text
    trainer.save_model()
    assert trainer.stop_reason in (tmp_path / "out" / "README.md").read_text()


def test_ascent_below_the_limit_runs_to_its_end(build):
    trainer = build(GATrainer, max_steps=2, learning_rate=1e-5, max_forget_loss=50.0)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.stop_reason is None


def test_a_loss_that_is_no_number_stops_too(build):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    trainer = build(GATrainer, given={"model": model}, max_steps=10, max_forget_loss=100.0)
    with pytest.raises(NonFiniteError, match="at step 1 forget/loss became infinite or undefined"):
        trainer.train()
    assert trainer.state.global_step == 1
