# SPDX-License-Identifier: Apache-2.0
"""Which rows a trainer sees and when: epochs, workers, seeds, evaluation between steps, and resume."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import changed, lora, make_model, weights
from transformers import TrainerCallback

from hf_unlearn import GATrainer, losses


# Order of rows


def watch_rows(trainer) -> list[list[int]]:
    """Row numbers of every micro-batch that a trainer computes a loss of, filled while it trains."""
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
    seen = watch_rows(trainer)
    trainer.train()
    assert seen == expected_batches(trainer, epochs=3, size=3)
    # 4 forget rows an epoch and 6 retain rows: 12 positions use every retain row twice.
    retain = [number for batch in seen for number in batch[len(batch) // 2 :]]
    assert set(Counter(retain).values()) == {2}


def test_workers_change_nothing(build):
    runs = []
    for workers in (0, 2):
        trainer = build(retain_loss="nll", max_steps=3, dataloader_num_workers=workers)
        seen = watch_rows(trainer)
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
        seen = watch_rows(trainer)
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
    seen = watch_rows(whole)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    # Two steps an epoch.
    first = build(given={"callbacks": [Stop()]}, output_dir=tmp_path / "parts", save_steps=stop, **settings)
    first_seen = watch_rows(first)
    first.train()
    assert first.state.global_step == stop
    second = build(output_dir=tmp_path / "parts", save_steps=100, **settings)
    second_seen = watch_rows(second)
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
    seen = watch_rows(whole)
    whole.train()
    resumed = build(GATrainer, output_dir=tmp_path / "run", **settings)
    rest = watch_rows(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert rest == seen[6:]
    assert not changed(weights(whole.model), weights(resumed.model))
