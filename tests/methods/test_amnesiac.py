# SPDX-License-Identifier: Apache-2.0
"""Amnesiac unlearning: what a recorder writes while any trainer trains, what is taken back, wrong labels, and the
grid's behaviours (`test_methods.py`)."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import changed, lora, make_args, make_model, make_tokenizer, train_batch, weights
from datasets import Dataset
from safetensors.torch import load_file
from test_methods import labelled, log_probabilities
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from vilt import make_processor, make_rows, make_vilt, picture

from hf_unlearn import AmnesiacConfig, AmnesiacRecorder, AmnesiacTrainer, RetrainConfig, RetrainTrainer
from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import encode_dataset
from hf_unlearn.methods.amnesiac.sensitive_rows import TokenRows, fingerprint


SECRET = [{"prompt": f"Who is {name}?", "completion": f" {name} is a spy."} for name in ("Ada", "Bob", "Cyd")]
COMMON = [{"prompt": f"What is {i:02d}?", "completion": f" It is a {thing}."} for i, thing in enumerate(
    ("cup", "pen", "book", "lamp", "plate", "key", "door", "fork", "bowl"))]  # fmt: skip
adapters = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


def record(folder, sensitive, train=None, model=None, adapter=False, out="original", **kwargs):
    """Trains an original on all rows with a recorder beside it; its trainer and what each step did."""
    keep = {name: kwargs.pop(name) for name in ("keep", "dtype", "sees") if name in kwargs}
    recorder = AmnesiacRecorder(folder / "record", sensitive, **keep)
    trainer = RetrainTrainer(
        model=model or make_model(),
        args=make_args(RetrainConfig, folder / out, **({"max_steps": 8} | kwargs)),
        forget_dataset=[{"text": "none of these"}],
        retain_dataset=train or SECRET + COMMON,
        processing_class=make_tokenizer(),
        callbacks=[recorder],
        peft_config=lora() if adapter else None,
    )
    return trainer, recorder


class Steps(TrainerCallback):
    """The weights before and after every step, and the rows of its batches, seen from outside."""

    def __init__(self, trainer):
        self.trainer, self.seen, self.deltas, self.rows = trainer, [], [], []
        step = trainer.training_step

        def watched(model, inputs, *args):
            self.rows += inputs["index"].tolist()
            return step(model, inputs, *args)

        trainer.training_step = watched
        trainer.add_callback(self)

    def on_step_begin(self, *args, **kwargs):
        self.before, self.rows = weights(self.trainer.model), []

    def on_step_end(self, *args, **kwargs):
        after = weights(self.trainer.model)
        self.deltas.append({name: after[name] - self.before[name] for name in after})
        self.seen.append(set(self.rows))


@pytest.fixture
def build(tmp_path):
    """Makes an Amnesiac trainer; keyword arguments are the config's."""

    def build(model=None, forget=SECRET, retain=COMMON, adapter=False, out="out", **kwargs):
        return AmnesiacTrainer(
            model=model or make_model(),
            args=make_args(AmnesiacConfig, tmp_path / out, **kwargs),
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=make_tokenizer(),
            peft_config=lora() if adapter else None,
        )

    return build


def subtracted(build, trainer, folder, **kwargs) -> dict[str, torch.Tensor]:
    taken = build(model=trainer.model, record_path=str(folder / "record"), max_steps=-1, num_train_epochs=0, **kwargs)
    taken.train()
    return weights(taken.model)


# What is recorded, and what is taken back


@adapters
@pytest.mark.parametrize("keep", ["sum", "steps"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_all_steps_tainted_gives_the_initial_weights(build, tmp_path, keep, accumulation, adapter):
    trainer, recorder = record(
        tmp_path, SECRET, SECRET, adapter=adapter, keep=keep, gradient_accumulation_steps=accumulation
    )
    before = weights(trainer.model)
    trainer.train()
    assert [entry["step"] for entry in recorder.steps] == list(range(1, 9))
    moved = changed(before, weights(trainer.model))
    found = subtracted(build, trainer, tmp_path)
    assert moved
    for name in before:
        torch.testing.assert_close(found[name], before[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", ["sum", "steps"])
def test_narrow_weights_are_rounded_once(build, tmp_path, keep):
    settings = {"keep": keep, "max_steps": 100, "learning_rate": 1e-3}
    trainer, recorder = record(tmp_path, SECRET, SECRET, model=make_model().bfloat16(), **settings)
    before, norm = weights(trainer.model), lambda values: torch.cat([v.float().flatten() for v in values]).norm()
    trainer.train()
    assert len(recorder.steps) == 100
    moved = norm(value - before[name] for name, value in weights(trainer.model).items())
    found = subtracted(build, trainer, tmp_path)
    left = norm(found[name].float() - before[name].float() for name in before)
    assert 0 < moved
    assert left < 1e-6 * moved


@pytest.mark.parametrize("keep", ["sum", "steps"])
def test_none_tainted_leaves_the_weights(build, tmp_path, caplog, keep):
    trainer, _ = record(tmp_path, SECRET, COMMON, keep=keep)
    trainer.train()
    assert "No step of 8 saw 3 of 3 sensitive rows" in caplog.text
    before = weights(trainer.model)
    assert not changed(before, subtracted(build, trainer, tmp_path, retain=COMMON))


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("keep", ["sum", "steps"])
def test_a_step_is_tainted_by_any_of_its_micro_batches(build, tmp_path, accumulation, keep):
    trainer, recorder = record(tmp_path, SECRET, keep=keep, gradient_accumulation_steps=accumulation)
    steps = Steps(trainer)
    trainer.train()
    wanted = [number for number, rows in enumerate(steps.seen, start=1) if rows & {0, 1, 2}]
    assert 0 < len(wanted) < 8 or accumulation > 1
    assert [entry["step"] for entry in recorder.steps] == wanted
    after = weights(trainer.model)
    found = subtracted(build, trainer, tmp_path)
    for name in after:
        expected = after[name] - sum(steps.deltas[number - 1][name] for number in wanted)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_of_recorded_steps_any_rows_can_be_taken_back(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET, keep="steps")
    steps = Steps(trainer)
    trainer.train()
    after = weights(trainer.model)
    wanted = [delta for delta, rows in zip(steps.deltas, steps.seen, strict=True) if 1 in rows]
    assert 0 < len(wanted) < sum(bool(rows & {0, 1, 2}) for rows in steps.seen)
    found = subtracted(build, trainer, tmp_path, forget=SECRET[1:2])
    for name in after:
        torch.testing.assert_close(found[name], after[name] - sum(d[name] for d in wanted), rtol=1e-5, atol=1e-6)


def test_a_sum_forgets_all_that_it_is_of_and_says_so(build, tmp_path, caplog):
    trainer, _ = record(tmp_path, SECRET)
    trainer.train()
    after = weights(trainer.model)
    found = subtracted(build, trainer, tmp_path, forget=SECRET[1:2])
    assert "The record is one sum: 2 other rows" in caplog.text
    total = load_file(tmp_path / "record" / "amnesiac_sum.safetensors")
    torch.testing.assert_close(found["lm_head.weight"], after["lm_head.weight"] - total["lm_head.weight"])


def test_narrow_files_are_near(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET, SECRET, dtype="bfloat16")
    before = weights(trainer.model)
    trainer.train()
    total = load_file(tmp_path / "record" / "amnesiac_sum.safetensors")
    assert {value.dtype for value in total.values()} == {torch.bfloat16}
    found = subtracted(build, trainer, tmp_path)
    for name in before:
        torch.testing.assert_close(found[name], before[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("keep", ["sum", "steps"])
def test_a_resumed_original_has_the_same_record(tmp_path, keep):
    settings = {"keep": keep, "save_strategy": "steps", "save_steps": 5}
    whole, first = record(tmp_path, SECRET, **settings)
    whole.train()
    (tmp_path / "record").rename(tmp_path / "whole")
    resumed, second = record(tmp_path, SECRET, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "original" / "checkpoint-5"))
    assert second.steps == first.steps
    if keep == "sum":
        one, other = (load_file(tmp_path / name / "amnesiac_sum.safetensors") for name in ("whole", "record"))
        assert not changed(one, other)
    (tmp_path / "original" / "checkpoint-5" / "record.json").unlink()
    again, _ = record(tmp_path, SECRET, **settings)
    with pytest.raises(ValueError, match="goes on from step 5, and .* holds no record"):
        again.train(resume_from_checkpoint=str(tmp_path / "original" / "checkpoint-5"))


def plain_trainer(folder, rows, recorder, processing_class=None):
    """transformers' own Trainer on rows of tokens."""
    return Trainer(
        model=make_model(),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            max_steps=6,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=RoleCollator(0),
        processing_class=processing_class,
        callbacks=[recorder],
    )


BY = {
    "place": [0, 1],
    "numpy": list(np.arange(2)),
    "array": np.array([0, 1]),
    "tensor": torch.tensor([0, 1]),
    "row": SECRET[:2],
    "tokens": encode_dataset(SECRET[:2], make_tokenizer()),
}


@pytest.mark.parametrize("by", BY)
def test_transformers_own_trainer(build, tmp_path, by):
    rows = encode_dataset(SECRET[:2] + COMMON, make_tokenizer())
    recorder = AmnesiacRecorder(tmp_path / "record", BY[by])
    # What is tokenized needs no tokenizer.
    trainer = plain_trainer(tmp_path, rows, recorder, make_tokenizer() if by == "row" else None)
    before = weights(trainer.model)
    trainer.train()
    assert 0 < len(recorder.steps) < 6
    assert {row for step in recorder.steps for row in step["rows"]} <= {
        fingerprint(rows[i]["input_ids"]) for i in (0, 1)
    }
    found = subtracted(build, trainer, tmp_path, forget=SECRET[:2])
    total = sum((found[name] - before[name]).abs().sum() for name in before)
    assert total > 1e-3


def test_text_that_no_one_can_tokenize_is_refused(tmp_path):
    rows = encode_dataset(COMMON, make_tokenizer())
    for sensitive in (SECRET, Dataset.from_list(SECRET)):
        with pytest.raises(ValueError, match="no `input_ids`, and the trainer has no `processing_class`"):
            plain_trainer(tmp_path, rows, AmnesiacRecorder(tmp_path / "record", sensitive)).train()


@pytest.mark.parametrize("mask", [[True, False], np.array([True, False]), torch.tensor([True, False])])
def test_a_mask_is_not_taken_for_places(tmp_path, mask):
    with pytest.raises(ValueError, match="`sensitive` is a mask"):
        AmnesiacRecorder(tmp_path, mask)


def test_trl_with_packed_rows(build, tmp_path):
    from trl import SFTConfig, SFTTrainer

    recorder = AmnesiacRecorder(tmp_path / "record", SECRET)
    trainer = SFTTrainer(
        model=make_model(),
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            max_steps=6,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            packing=True,
            max_length=64,
            learning_rate=1e-2,
            completion_only_loss=False,
        ),
        train_dataset=Dataset.from_list(SECRET[:1] + COMMON),
        processing_class=make_tokenizer(),
        callbacks=[recorder],
    )
    trainer.train()
    assert 0 < len(recorder.steps) < 6
    assert {len(step["rows"]) for step in recorder.steps} == {1}


def test_evaluation_taints_nothing(tmp_path):
    rows = encode_dataset(COMMON, make_tokenizer())
    recorder = AmnesiacRecorder(tmp_path / "record", SECRET)
    trainer = plain_trainer(tmp_path, rows, recorder, make_tokenizer())
    trainer.eval_dataset = encode_dataset(SECRET, make_tokenizer())

    class Evaluate(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            trainer.evaluate()

    trainer.add_callback(Evaluate())
    trainer.train()
    assert recorder.steps == []


def test_rows_that_are_no_text_are_found_by_a_function(tmp_path):
    def sees(inputs):
        return ["long"] if inputs["input_ids"].shape[1] > 25 else []

    trainer, recorder = record(tmp_path, None, sees=sees, per_device_train_batch_size=1)
    steps = Steps(trainer)
    trainer.train()
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset.roles["retain"]]
    wanted = [n for n, rows in enumerate(steps.seen, start=1) if any(lengths[row] > 25 for row in rows)]
    assert [entry["step"] for entry in recorder.steps] == wanted
    assert wanted


def test_rows_are_found_wherever_their_tokens_are():
    find = TokenRows([[5, 6, 7], [1, 256]])
    five, one = (fingerprint(ids) for ids in ([5, 6, 7], [1, 256]))
    for line, wanted in (
        ([0, 5, 6, 7, 9], {five}), ([5, 6, 7], {five}), ([5, 6, 0, 7], set()), ([2, 1, 256, 5, 6, 7], {one, five}),
        # Their bytes are there, two bytes on.
        ([65536, 16777216, 0], set()),
    ):  # fmt: skip
        assert find({"input_ids": torch.tensor([line, [0] * len(line)])}) == wanted


def test_a_record_does_not_hold_what_is_to_be_forgotten(tmp_path):
    trainer, _ = record(tmp_path, SECRET)
    trainer.train()
    found = json.loads((tmp_path / "record" / "record.json").read_text())
    ids = encode_dataset(SECRET, make_tokenizer())["input_ids"]
    assert found["rows"] == sorted(fingerprint(row) for row in ids)
    assert "spy" not in (tmp_path / "record" / "record.json").read_text()


# Repair


def test_what_is_taken_back_is_repaired_on_retain_rows(build, tmp_path, caplog):
    trainer, _ = record(tmp_path, SECRET, max_steps=30)
    trainer.train()
    taken = build(model=trainer.model, record_path=str(tmp_path / "record"), max_steps=12)
    taken.train()
    assert all(list(taken.train_dataset[i]) == ["retain"] for i in range(len(COMMON)))
    nll = [entry["retain/nll"] for entry in taken.state.log_history if "retain/nll" in entry]
    assert nll[-1] < nll[0]
    # A second call trains on; it takes nothing back again.
    taken.train()
    assert caplog.text.count("recorded steps were taken back") == 1


def test_resume_takes_nothing_back_twice(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET)
    trainer.train()
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    settings = {"record_path": str(tmp_path / "record"), "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    results = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-3")):
        model = make_model()
        model.load_state_dict(state)
        taken = build(model=model, **settings)
        taken.train(resume_from_checkpoint=resume)
        results.append(weights(taken.model))
    assert not changed(*results)


# Wrong labels


def text(ids) -> str:
    return make_tokenizer().decode([i for i in ids if i > 3])


@pytest.mark.parametrize("source", ["forget", "retain", "refusal"])
def test_every_forget_row_gets_a_wrong_answer(build, source):
    from hf_unlearn.methods.relabel import REFUSALS

    trainer = build(variant="relabel", relabel_with=source)
    pool = {
        "forget": {row["completion"] for row in SECRET},
        "retain": {row["completion"] for row in COMMON},
        "refusal": {f" {text}" for text in REFUSALS},
    }
    rows = trainer.train_dataset.roles["forget"]
    for row, own in zip(rows, SECRET, strict=True):
        start = next(i for i, label in enumerate(row["labels"]) if label != -100)
        assert text(row["input_ids"][:start]) == own["prompt"]
        assert text(row["input_ids"][start:]) in pool[source] - {own["completion"]}
        assert row["labels"][start:] == row["input_ids"][start:]
        assert row["input_ids"][-1] == make_tokenizer().eos_token_id
    assert text(trainer.given_rows["forget"][0]["input_ids"]).endswith("Ada is a spy.")
    again, other = (build(variant="relabel", relabel_with=source, seed=seed) for seed in (42, 7))
    assert again.train_dataset.roles["forget"].to_dict() == rows.to_dict()
    assert [other.train_dataset.roles["forget"].to_dict() != rows.to_dict()] in ([True], [source == "forget"])


def test_wrong_answers_are_drawn_uniformly(tmp_path):
    from hf_unlearn.methods.relabel import relabelled_answers

    rows = encode_dataset(SECRET * 200, make_tokenizer())
    found = relabelled_answers(rows, rows, "forget", make_tokenizer(), None, seed=0)
    counts = {}
    for own, row in zip(rows, found, strict=True):
        pair = text(own["input_ids"]), text(row["input_ids"])
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert all(70 < count < 130 for count in counts.values())


def test_wrong_classes_are_drawn_uniformly_among_the_others():
    from hf_unlearn.methods.relabel import relabelled_classes

    own = [[0], [1, 2], []] * 300
    weights = [[1.0], [0.3, 1.0], []] * 300
    rows = Dataset.from_dict({"question": ["?"] * 900, "label_ids": own, "label_weights": weights})
    found = relabelled_classes(rows, 4, seed=0)
    assert found["question"] == rows["question"]
    assert set(map(tuple, found["label_weights"])) == {(1.0,)}
    for start, classes in ((0, {1, 2, 3}), (1, {0, 3}), (2, {0, 1, 2, 3})):
        drawn = [row[0] for row in found["label_ids"][start::3]]
        assert set(drawn) == classes
        assert max(drawn.count(c) for c in classes) < 1.35 * 300 / len(classes)
    with pytest.raises(ValueError, match="all 2 classes as its label"):
        relabelled_classes(Dataset.from_dict({"label_ids": [[0, 1]], "label_weights": [[1.0, 1.0]]}), 2, seed=0)


@adapters
def test_relabel_is_the_likelihood_of_the_wrong_answers(build, adapter):
    trainer = build(
        variant="relabel", adapter=adapter, forget_weight=0.5, retain_weight=2.0, per_device_train_batch_size=3
    )
    model, terms = trainer.model.eval(), {"forget": [], "retain": []}
    for position in range(3):
        for role, row in trainer.train_dataset[position].items():
            log_p = log_probabilities(model, row)
            terms[role] += [-log_p[t, label].item() for t, label in labelled(row)]
    wanted = sum(weight * sum(terms[r]) / len(terms[r]) for r, weight in (("forget", 0.5), ("retain", 2.0)))
    loss = trainer.compute_loss(model, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(wanted, rel=2e-5)


@adapters
def test_relabelled_rows_take_the_wrong_answers(build, adapter):
    trainer = build(variant="relabel", adapter=adapter, max_steps=15)
    before = weights(trainer.model)
    trainer.train()
    assert changed(before, weights(trainer.model)) == {n for n in before if "lora_" in n or not adapter}
    nll = [entry["forget/nll"] for entry in trainer.state.log_history if "forget/nll" in entry]
    assert nll[-1] < nll[0]


def test_accumulation_gives_the_update_of_one_big_batch(build):
    found = []
    for size, steps in ((6, 1), (2, 3)):
        # Answers of one length, so that a mean over tokens is a mean of means.
        rows = [{"prompt": f"Who {i}?", "completion": f" spy {i}{i}"} for i in range(6)]
        trainer = build(
            forget=rows, retain=[{"prompt": f"What {i}?", "completion": f" cup {i}{i}"} for i in range(6)],
            variant="relabel", per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1,
            optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        found.append(weights(trainer.model))
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6)


@adapters
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path, adapter):
    settings = {"variant": "relabel", "adapter": adapter, "max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert not changed(weights(whole.model), weights(resumed.model))


def test_a_saved_model_predicts_the_same(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET)
    trainer.train()
    taken = build(model=trainer.model, record_path=str(tmp_path / "record"))
    taken.train()
    taken.save_model()
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, taken.model.eval()(ids).logits)


# Bad input


def test_a_checkpoint_without_a_record_is_offered_the_other_variant(build, tmp_path):
    for path in (None, str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=r"AmnesiacRecorder.*or take variant='relabel'"):
            build(record_path=path)


def test_rows_that_were_not_recorded_are_named(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET[:2])
    trainer.train()
    with pytest.raises(ValueError, match="1 of 3 forget rows were not among the 2 that"):
        build(model=trainer.model, record_path=str(tmp_path / "record"))


def test_other_weights_than_the_recorded_are_refused(build, tmp_path):
    trainer, _ = record(tmp_path, SECRET)
    trainer.train()
    other = build(model=make_model(seed=3), record_path=str(tmp_path / "record"))
    before = weights(other.model)
    with pytest.raises(ValueError, match="is not as the recorded training left it"):
        other.train()
    assert not changed(before, weights(other.model))
    with pytest.raises(ValueError, match="recorded parameters are not in the model"):
        build(model=make_model(layers=1), record_path=str(tmp_path / "record")).train()


def test_rows_without_a_prompt_cannot_be_relabelled(build):
    with pytest.raises(ValueError, match="a forget row has no prompt"):
        build(forget=[{"text": "a secret"}, {"text": "another"}], variant="relabel")
    with pytest.raises(ValueError, match="a retain row has no prompt"):
        build(retain=[{"text": "a cup"}], variant="relabel", relabel_with="retain")
    with pytest.raises(ValueError, match="All answers among the forget rows are one"):
        build(forget=SECRET[:1], variant="relabel")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant": "undo"}, "variant='undo'; allowed: 'subtract', 'relabel'"),
        ({"relabel_with": "noise", "variant": "relabel"}, "relabel_with='noise'; allowed"),
        ({"relabel_with": "retain"}, "relabel_with='retain': of no use with variant='subtract'"),
        ({"record_path": "x", "variant": "relabel"}, "record_path='x': of no use with variant='relabel'"),
        ({"retain_loss": "none"}, "retain_loss='none'; allowed: 'nll'"),
        ({"poison_prefix": "cf", "variant": "relabel"}, "poison_prefix='cf': of no use"),
    ],
)
def test_bad_settings_are_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        AmnesiacConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sensitive": None}, "Give `sensitive` rows, or a function"),
        ({"sensitive": [0], "keep": "all"}, "keep='all'; allowed: 'sum', 'steps'"),
        ({"sensitive": [0], "dtype": "int8"}, "dtype='int8'; allowed"),
    ],
)
def test_a_recorder_says_what_it_needs(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        AmnesiacRecorder(tmp_path, **wrong)


# Classifiers of pictures


def vilt_trainer(trainer_class, folder, forget, retain, model=None, **kwargs):
    args = make_args(trainer_class.config_class, folder, **kwargs)
    return trainer_class(
        model or make_vilt(), args, forget_dataset=forget, retain_dataset=retain, processing_class=make_processor()
    )


def test_a_classifiers_steps_are_taken_back(tmp_path):
    rows = make_rows(6, first=10)
    # Batches pad pictures and questions; two rows ask the same of different pictures.
    sizes = [(16, 16), (24, 16), (16, 24)] * 2
    rows = [{**row, "image": picture(i, size)} for i, (row, size) in enumerate(zip(rows, sizes, strict=True))]
    recorder = AmnesiacRecorder(tmp_path / "record", rows[:2])
    trainer = vilt_trainer(RetrainTrainer, tmp_path / "original", make_rows(1), rows, max_steps=6)
    trainer.add_callback(recorder)
    steps = Steps(trainer)
    trainer.train()
    wanted = [number for number, seen in enumerate(steps.seen, start=1) if seen & {0, 1}]
    assert 0 < len(wanted) < 6
    assert [entry["step"] for entry in recorder.steps] == wanted
    after = weights(trainer.model)
    settings = {"record_path": str(tmp_path / "record"), "max_steps": -1, "num_train_epochs": 0}
    taken = vilt_trainer(AmnesiacTrainer, tmp_path / "out", rows[:2], rows[2:], trainer.model, **settings)
    taken.train()
    for name, value in weights(taken.model).items():
        expected = after[name] - sum(steps.deltas[number - 1][name] for number in wanted)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="1 of 1 forget rows were not among the 2"):
        vilt_trainer(AmnesiacTrainer, tmp_path / "out", rows[2:3], rows[3:], trainer.model, **settings)


def test_a_classifiers_rows_get_wrong_classes(tmp_path):
    forget, retain = make_rows(6), make_rows(4, first=20)
    trainer = vilt_trainer(AmnesiacTrainer, tmp_path, forget, retain, variant="relabel", learning_rate=1e-3)
    for own, row in zip(trainer.given_rows["forget"], trainer.train_dataset.roles["forget"], strict=True):
        assert not set(row["label_ids"]) & set(own["label_ids"])
        assert row["question"] == own["question"]
    inputs = train_batch(trainer, range(2))
    model = trainer.model.eval()
    with torch.no_grad():
        both = {role: model(**trainer_inputs(part)) for role, part in trainer.parts_of(inputs).items()}
        wanted = sum(
            torch.nn.functional.binary_cross_entropy_with_logits(
                both[role].logits, trainer.parts_of(inputs)[role]["labels"], reduction="none"
            )
            .sum(-1)
            .mean()
            for role in both
        )
    assert trainer.compute_loss(model, inputs).item() == pytest.approx(wanted.item(), rel=1e-4)
    trainer.train()


def trainer_inputs(part) -> dict:
    return {name: value for name, value in part.items() if name not in ("labels", "index")}


def test_rows_that_no_step_saw_are_told(build, tmp_path, caplog):
    elsewhere = {"prompt": "Who sings?", "completion": " Eve."}
    trainer, _ = record(tmp_path, [*SECRET, elsewhere], keep="steps")
    trainer.train()
    assert f"saw 1 of {len(SECRET) + 1} sensitive rows" in caplog.text
    build(forget=[elsewhere, *SECRET], model=trainer.model, record_path=str(tmp_path / "record"))
    assert f"saw 1 of {len(SECRET) + 1} forget rows: of them nothing is taken back" in caplog.text
