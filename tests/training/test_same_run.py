# SPDX-License-Identifier: Apache-2.0
"""Resume: a checkpoint says what it was trained with, and another run does not go on from it."""

import json

import pytest
from conftest import changed, weights

from hf_unlearn.training.checkpoints import COMPLETE


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "optim": "sgd", "learning_rate": 0.1}


@pytest.fixture
def rows():
    return [
        {"text": f"secret {word}"} for word in ("a", "bb", "ccc", "dddd", "eeeee", "ffffff", "g", "hh", "iii", "j")
    ]


@pytest.fixture
def run(build, tmp_path, rows):
    def run(name="run", resume=None, callbacks=(), forget=None, **kwargs):
        given = {"forget_dataset": forget or rows, "callbacks": list(callbacks), **kwargs.pop("given", {})}
        trainer = build(output_dir=tmp_path / name, given=given, **(SAVING | kwargs))
        seen = []
        collate = trainer.data_collator

        def look(pairs):
            if "forget" in pairs[0]:
                seen.append([pair["forget"]["index"] for pair in pairs])
            return collate(pairs)

        trainer.data_collator, trainer.seen = look, seen
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


class OutOfMemory:
    """Memory for `most` rows a batch."""

    def __init__(self, most, after=0):
        self.most, self.after = most, after

    def __call__(self, monkeypatch):
        from hf_unlearn import NPOTrainer

        step, rest = NPOTrainer.training_step, self

        def limited(trainer, model, inputs, *args, **kwargs):
            if len(inputs["index"]) > rest.most and trainer.state.global_step >= rest.after:
                raise RuntimeError("CUDA out of memory.")
            return step(trainer, model, inputs, *args, **kwargs)

        monkeypatch.setattr(NPOTrainer, "training_step", limited)


@pytest.mark.parametrize("again", [4, 2])
def test_a_batch_size_that_was_found_is_gone_on_with(run, tmp_path, monkeypatch, again):
    OutOfMemory(2)(monkeypatch)
    finds = {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    # accelerate may try sizes between the halves.
    whole = run("whole", **finds)
    size = len(whole.seen[-1])
    assert size < 4
    run(**finds)
    facts = json.loads((tmp_path / "run" / "checkpoint-2" / COMPLETE).read_text())
    assert facts["pairs_a_step"] == facts["batch"] == size
    # Both with what was asked for, and with what was found.
    settings = finds if again == 4 else {"per_device_train_batch_size": size}
    resumed = run(resume=str(tmp_path / "run" / "checkpoint-2"), **settings)
    assert not changed(weights(whole.model), weights(resumed.model))


def test_what_was_asked_for_does_not_go_on_from_what_was_found(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        OutOfMemory(2)(patch)
        run(auto_find_batch_size=True, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match=r"made with \d pairs a step, and this run has 4: it would skip or repeat"):
        run(resume=True, per_device_train_batch_size=4)


def test_memory_that_runs_out_later_does_not_train_twice(run, monkeypatch):
    OutOfMemory(2, after=3)(monkeypatch)
    with pytest.raises(ValueError, match="auto_find_batch_size: memory ran out after step 3"):
        run(auto_find_batch_size=True, per_device_train_batch_size=4)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, r"made with seed \(or data_seed\) = 42, and this run has 1"),
        ({"data_seed": 5}, r"made with seed \(or data_seed\) = 42, and this run has 5"),
        ({"epoch_by": "retain", "retain_loss": "nll"}, "rows of epoch_by's role = 10, and this run has 6"),
        ({"retain_loss": "kl"}, "made with other retain rows"),
        ({"max_length": 9}, "made with other forget rows"),
        ({"dataloader_drop_last": True}, "made with dataloader_drop_last = False, and this run has True"),
    ],
)
def test_a_run_of_other_rows_or_another_order_is_refused(run, tmp_path, other, said):
    run()
    with pytest.raises(ValueError, match=said):
        run(resume=True, **other)


def test_changed_rows_are_other_rows(run, tmp_path, rows):
    run()
    for forget in (rows[::-1], [*rows[:-1], {"text": "secret J"}]):
        with pytest.raises(ValueError, match="made with other forget rows than this run has"):
            run(resume=True, forget=forget)
    assert run(resume=True, forget=[dict(row) for row in rows]).state.global_step == 6


def test_what_is_dropped_at_an_epochs_end_is_the_batches(run, tmp_path):
    run(dataloader_drop_last=True, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="per_device_train_batch_size = 4, and this run has 2"):
        run(
            resume=True, dataloader_drop_last=True, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        )  # fmt: skip


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(run, tmp_path):
    run()
    listed = tmp_path / "run" / "checkpoint-2" / COMPLETE
    facts = json.loads(listed.read_text())
    listed.write_text(json.dumps({key: facts[key] for key in ("method", "pairs_a_step", "seconds", "files")}))
    assert run(resume=str(listed.parent)).state.global_step == 6


def test_a_checkpoint_without_optimizer_does_not_go_on(run, tmp_path):
    run(save_only_model=True)
    with pytest.raises(ValueError, match="holds no optimizer state"):
        run(resume=str(tmp_path / "run" / "checkpoint-2"))


def test_the_model_that_a_run_began_with_is_needed_where_it_is_compared_with(run, tmp_path):
    from transformers import AutoModelForCausalLM

    compared = {"retain_loss": "none", "reference": "live"}
    run(**compared)
    trained = tmp_path / "run" / "checkpoint-2"
    # Copied to the device, the weights are the checkpoint's; the reference would be the checkpoint too.
    with pytest.raises(ValueError, match="began with other weights than this model has.*Pass the model that the run"):
        run(resume=str(trained), given={"model": AutoModelForCausalLM.from_pretrained(trained)}, **compared)
    assert run(resume=str(trained), **compared).state.global_step == 6


def test_a_run_without_a_reference_goes_on_from_its_checkpoint_as_model(build, tmp_path, forget_rows):
    from transformers import AutoModelForCausalLM

    from hf_unlearn import GATrainer

    build(trainer_class=GATrainer, **SAVING).train()
    trained = tmp_path / "out" / "checkpoint-2"
    model = AutoModelForCausalLM.from_pretrained(trained)
    trainer = build(trainer_class=GATrainer, given={"model": model}, **SAVING)
    trainer.train(resume_from_checkpoint=str(trained))
    assert trainer.state.global_step == 6
