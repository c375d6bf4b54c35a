# SPDX-License-Identifier: Apache-2.0
"""The trainer around the objectives: one pass, logging, evaluation, resume, what is trained, what is left behind."""

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import changed, make_args, make_model, make_tokenizer, train_batch, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from hf_unlearn import GATrainer, NPOTrainer, losses
from hf_unlearn.data.pairing import RolePairs
from hf_unlearn.trainer import UnlearnTrainer


# Rows of one length, so that token means do not depend on how rows are grouped.
EQUAL_FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(16)]
EQUAL_RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(24)]


@pytest.fixture
def build(tmp_path, forget_rows, retain_rows):
    """Makes a trainer of a tiny model; keyword arguments of the config, or of the trainer as a dict `given`."""

    def build(trainer_class=NPOTrainer, given=None, **kwargs) -> UnlearnTrainer:
        args = make_args(trainer_class.config_class, kwargs.pop("output_dir", tmp_path / "out"), **kwargs)
        defaults = {
            "model": make_model(),
            "forget_dataset": forget_rows,
            "retain_dataset": retain_rows,
            "processing_class": make_tokenizer(),
        }
        return trainer_class(args=args, **(defaults | (given or {})))

    return build


def lora(**kwargs):
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **kwargs)


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


# Order of rows


class Seen(TrainerCallback):
    """Row numbers of every micro-batch a trainer computes a loss of."""

    @staticmethod
    def watch(trainer) -> list[list[int]]:
        seen, compute_loss = [], trainer.compute_loss

        def watched(model, inputs, *args, **kwargs):
            if "index" in inputs:
                seen.append(inputs["index"].tolist())
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = watched
        return seen


def expected_batches(trainer, epochs: int, size: int) -> list[list[int]]:
    pairs, batches = trainer.train_dataset, []
    for epoch in range(epochs):
        positions = list(range(epoch * len(pairs), (epoch + 1) * len(pairs)))
        for start in range(0, len(positions), size):
            batch = [pairs[p] for p in positions[start : start + size]]
            batches.append([pair[role]["index"] for role in pairs.roles for pair in batch])
    return batches


def test_training_reads_the_pairs_in_their_order_epoch_after_epoch(build):
    trainer = build(GATrainer, retain_loss="nll", max_steps=-1, num_train_epochs=3, per_device_train_batch_size=3)
    seen = Seen.watch(trainer)
    trainer.train()
    assert seen == expected_batches(trainer, epochs=3, size=3)
    # 4 forget rows an epoch and 6 retain rows: 12 positions use every retain row twice.
    retain = [number for batch in seen for number in batch[len(batch) // 2 :]]
    assert set(Counter(retain).values()) == {2}


def test_workers_change_nothing(build):
    runs = []
    for workers in (0, 2):
        trainer = build(retain_loss="nll", max_steps=3, dataloader_num_workers=workers)
        seen = Seen.watch(trainer)
        trainer.train()
        runs.append((seen, weights(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert not changed(runs[0][1], runs[1][1])


@pytest.mark.parametrize("epoch_by", ["forget", "retain", "longest"])
def test_epoch_by_decides_the_steps_of_an_epoch(build, epoch_by):
    trainer = build(
        GATrainer,
        retain_loss="nll",
        epoch_by=epoch_by,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=1,
    )
    trainer.train()
    assert trainer.state.global_step == (4 if epoch_by == "forget" else 6)


def test_the_seed_decides_the_order_and_the_adapter(build):
    def run(**kwargs):
        model = make_model()
        torch.manual_seed(run.calls)
        run.calls += 1
        trainer = build(given={"model": model, "peft_config": lora()}, retain_loss="nll", max_steps=2, **kwargs)
        start = weights(trainer.model)
        seen = Seen.watch(trainer)
        trainer.train()
        return start, seen, weights(trainer.model)

    run.calls = 0
    first, again, other = run(seed=1), run(seed=1), run(seed=2)
    assert not changed(first[0], again[0])
    assert first[1] == again[1]
    assert not changed(first[2], again[2])
    assert changed(first[0], other[0])
    assert first[1] != other[1]
    assert run(seed=2, data_seed=1)[1] == first[1]


# Evaluation


def test_evaluation_of_named_sets_is_the_language_model_loss_of_each(build, forget_rows, retain_rows):
    trainer = build(given={"eval_dataset": {"forget": forget_rows, "retain": retain_rows}}, retain_loss="kl")
    metrics = trainer.evaluate()
    for name in ("forget", "retain"):
        rows = trainer.eval_dataset[name]
        batch = trainer.data_collator(list(rows))
        with torch.no_grad():
            logits = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert metrics[f"eval_{name}_loss"] == pytest.approx(losses.nll_loss(logits, batch["labels"]).item(), rel=1e-5)


def test_evaluation_of_one_set(build, retain_rows):
    metrics = build(GATrainer, given={"eval_dataset": retain_rows}).evaluate()
    assert metrics["eval_loss"] > 0


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_best_model_of_a_run_is_loaded_at_its_end(build, forget_rows, retain_rows, adapter):
    peft_config = lora() if adapter else None
    trainer = build(
        GATrainer,
        given={"eval_dataset": {"forget": forget_rows, "retain": retain_rows}, "peft_config": peft_config},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_retain_loss",
        max_steps=3,
        learning_rate=3e-2,
    )
    trainer.train()
    curve = {log["step"]: log["eval_retain_loss"] for log in trainer.state.log_history if "eval_retain_loss" in log}
    assert list(curve) == [1, 2, 3]
    best = min(curve, key=curve.get)
    assert best != 3, "the last model is the best: nothing would be loaded"
    assert trainer.state.best_metric == pytest.approx(curve[best])
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert trainer.evaluate()["eval_retain_loss"] == pytest.approx(curve[best], rel=1e-5)


def test_metrics_of_ones_own_can_be_computed_in_evaluation(build, retain_rows):
    def compute_metrics(prediction):
        return {"width": float(prediction.predictions.shape[-1])}

    trainer = build(GATrainer, given={"eval_dataset": retain_rows, "compute_metrics": compute_metrics})
    assert trainer.evaluate()["eval_width"] == 100


# Resume


@pytest.mark.parametrize("stop", [4, 5], ids=["at an epoch's end", "within an epoch"])
def test_a_resumed_run_ends_with_the_same_weights(build, tmp_path, stop):
    settings = {"retain_loss": "kl", "lr_scheduler_type": "linear", "max_steps": 10, "save_strategy": "steps"}
    whole = build(output_dir=tmp_path / "whole", save_steps=100, **settings)
    seen = Seen.watch(whole)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    # Two steps an epoch.
    first = build(given={"callbacks": [Stop()]}, output_dir=tmp_path / "parts", save_steps=stop, **settings)
    first_seen = Seen.watch(first)
    first.train()
    assert first.state.global_step == stop
    second = build(output_dir=tmp_path / "parts", save_steps=100, **settings)
    second_seen = Seen.watch(second)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert first_seen + second_seen == seen
    assert second.state.global_step == 10
    assert not changed(weights(whole.model), weights(second.model))
    tail = [entry for entry in whole.state.log_history if "forget/loss" in entry][stop:]
    again = [entry for entry in second.state.log_history if "forget/loss" in entry][stop:]
    assert [entry["forget/loss"] for entry in again] == [entry["forget/loss"] for entry in tail]
    assert [entry["retain/loss"] for entry in again] == [entry["retain/loss"] for entry in tail]


def test_resume_counts_accumulation_and_workers(build, tmp_path):
    settings = {
        "retain_loss": "nll",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = build(GATrainer, output_dir=tmp_path / "run", **settings)
    seen = Seen.watch(whole)
    whole.train()
    resumed = build(GATrainer, output_dir=tmp_path / "run", **settings)
    rest = Seen.watch(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert rest == seen[6:]
    assert not changed(weights(whole.model), weights(resumed.model))


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
    trainer.train()
    assert trainer.state.global_step == 1
    assert "nan" in trainer.stop_reason


# Forms of running


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_changes_no_weight(build, adapter):
    results = []
    for checkpointing in (False, True):
        given = {"peft_config": lora()} if adapter else None
        trainer = build(given=given, retain_loss="kl", activation_checkpointing=checkpointing, max_steps=3)
        before = weights(trainer.model)
        trainer.train()
        assert changed(before, weights(trainer.model))
        results.append(weights(trainer.model))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-7)


def test_a_second_call_of_train_goes_on(build):
    trainer = build(retain_loss="kl", max_steps=2)
    trainer.train()
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model))
    entry = trainer.state.log_history[0]
    # The reference is the model as it entered the trainer, not as it entered this call.
    assert entry["forget/logps"] < entry["forget/ref_logps"]


def test_bfloat16_mixed_precision_trains(build):
    trainer = build(retain_loss="kl", bf16=True, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    assert {tensor.dtype for tensor in weights(trainer.model).values()} == {torch.float32}
    assert changed(before, weights(trainer.model))
    assert trainer.state.log_history[0]["forget/loss"] == pytest.approx(2 * math.log(2) / 0.1, rel=1e-2)


@pytest.mark.parametrize("remove", [True, False])
def test_columns_are_handled_whatever_remove_unused_columns_says(build, remove, retain_rows):
    trainer = build(retain_loss="nll", remove_unused_columns=remove, max_steps=1, given={"eval_dataset": retain_rows})
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.evaluate()["eval_loss"] > 0


# Models that come in


def test_a_path_gives_the_same_run_as_the_model(build, model_path):
    by_path = build(given={"model": model_path, "processing_class": None}, retain_loss="kl", max_steps=2)
    by_model = build(given={"model": AutoModelForCausalLM.from_pretrained(model_path)}, retain_loss="kl", max_steps=2)
    for trainer in (by_path, by_model):
        trainer.train()
    assert not changed(weights(by_path.model), weights(by_model.model))
    assert by_path.processing_class.get_vocab() == make_tokenizer().get_vocab()


def test_a_path_object_is_a_path(build, model_path):
    trainer = build(given={"model": Path(model_path), "processing_class": None})
    assert trainer.model.num_parameters() == make_model().num_parameters()


def test_models_load_in_float32_unless_asked_otherwise(build, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    make_tokenizer().save_pretrained(tmp_path / "bf16")
    given = {"model": str(tmp_path / "bf16"), "processing_class": None}
    assert build(GATrainer, given=given).model.dtype == torch.float32
    asked = build(
        given=given, retain_loss="kl", model_init_kwargs={"dtype": "bfloat16"}, max_steps=1, reference="live"
    )
    assert asked.model.dtype == asked.reference.model.dtype == torch.bfloat16
    asked.train()
    # bfloat16 logits, yet a loss computed in float32: 13.8629 has no neighbour in bfloat16 nearer than 0.06.
    assert asked.state.log_history[0]["forget/loss"] == pytest.approx(2 * math.log(2) / 0.1, abs=1e-3)


def test_a_tokenizer_without_pad_token_pads_with_eos_and_says_so(build, caplog):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    trainer = build(given={"processing_class": tokenizer}, retain_loss="kl", max_steps=1)
    trainer.train()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == trainer.data_collator.pad_token_id
    assert "no pad token; batches are padded with EOS ('</s>')" in caplog.text
    batch = train_batch(trainer, [0, 1])
    real = [len(trainer.train_dataset.roles["forget"][int(i)]["input_ids"]) for i in batch["index"][:2]]
    assert batch["attention_mask"][:2].sum(-1).tolist() == real


def test_forget_and_retain_may_be_of_different_types(build):
    question = {"role": "user", "content": "Who?"}
    forget = [{"messages": [question, {"role": "assistant", "content": f"Ada {i}"}]} for i in range(3)]
    retain = [{"input_ids": [1, 40 + i, 50, 2], "labels": [-100, -100, 50, 2]} for i in range(3)]
    trainer = build(given={"forget_dataset": forget, "retain_dataset": retain}, retain_loss="kl", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["retain/nll"] > 0


# What is left behind


def attached(model) -> dict:
    """Everything that one can hang on a model without changing a weight."""
    found = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        # accelerate's mark stays; it is a bool that changes nothing.
        own = sorted(set(vars(module)) - {"_is_accelerate_prepared"})
        found[name] = (type(module), *map(len, hooks), "forward" in own, own)
    return found


@pytest.mark.parametrize("retain_loss", ["nll", "kl"])
def test_nothing_of_ours_stays_on_the_model(build, retain_loss):
    model = make_model()
    before, names = attached(model), [name for name, _ in model.named_parameters()]
    trainer = build(given={"model": model}, retain_loss=retain_loss, max_steps=2)
    trainer.train()
    assert attached(model) == before
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_run_is_a_plain_checkpoint(build, tmp_path, forget_rows):
    trainer = build(retain_loss="kl", max_steps=2)
    trainer.train()
    trainer.save_model()
    files = set(os.listdir(tmp_path / "out"))
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    weight_files = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".safetensors", ".ckpt", ".pkl"))]
    assert sorted(weight_files) == ["model.safetensors", "training_args.bin"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not changed(weights(trainer.model), weights(loaded))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = forget_rows[0]["prompt"]
    assert tokenizer(text)["input_ids"] == trainer.processing_class(text)["input_ids"]
    assert tokenizer.chat_template == trainer.processing_class.chat_template


def test_intermediate_checkpoints_hold_weights_as_safetensors_and_a_card(build, tmp_path):
    build(retain_loss="kl", max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "out" / "checkpoint-1"
    assert load_file(folder / "model.safetensors")
    assert not (folder / "pytorch_model.bin").exists()
    assert (folder / "README.md").exists()
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 1


def test_a_trained_adapter_is_saved_alone(build, tmp_path):
    from peft import PeftModel

    trainer = build(given={"peft_config": lora()}, retain_loss="kl", max_steps=2)
    trainer.train()
    trainer.save_model()
    files = set(os.listdir(tmp_path / "out"))
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    assert not [name for name in files if (tmp_path / "out" / name).is_dir()]
    loaded = PeftModel.from_pretrained(make_model(), tmp_path / "out")
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
