# SPDX-License-Identifier: Apache-2.0
"""What users of other trainers pass: arguments of theirs, their collators, raw rows to evaluate."""

import pytest
import torch
from conftest import make_tokenizer
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithPadding
from transformers import default_data_collator as plain_collator

from hf_unlearn import FisherTrainer, GATrainer, ScrubTrainer
from hf_unlearn.data.collator import RoleCollator


OTHERS = {
    "train_dataset": "Pass the rows to forget as `forget_dataset`",
    "tokenizer": "Pass it as `processing_class`",
    "model_init": "Pass the model, or its path or Hub id, as `model`",
    "compute_loss_func": "The loss is the method's",
    "formatting_func": "Rows of any TRL type are read as they are",
    "max_seq_length": "Set `max_length` of the config",
    "packing": "forward_passes='packed'",
    "forget_datset": "Did you mean 'forget_dataset'?",
    "qqq": "It takes model, args, data_collator, forget_dataset, .*; settings are the config's",
}


@pytest.mark.parametrize("trainer_class", [GATrainer, ScrubTrainer])
@pytest.mark.parametrize("name", OTHERS)
def test_an_argument_of_another_trainer_is_told_what_takes_its_place(build, trainer_class, name):
    with pytest.raises(ValueError, match=f"{trainer_class.__name__} takes no `{name}`. .*{OTHERS[name]}"):
        build(trainer_class, given={name: object()}, **({"max_steps": -1} if trainer_class is ScrubTrainer else {}))


def test_logits_can_be_preprocessed(build, forget_rows):
    seen = []

    def best(logits, labels):
        return logits.argmax(-1)

    def compute(found):
        seen.append(found.predictions.shape)
        return {"mine": 1.0}

    given = {"preprocess_logits_for_metrics": best, "compute_metrics": compute, "eval_dataset": forget_rows}
    assert build(given=given).evaluate()["eval_mine"] == 1.0
    assert len(seen[0]) == 2


# Collators


def collators(tokenizer):
    own = RoleCollator(tokenizer.pad_token_id)
    return {
        "language modeling": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "padding": DataCollatorWithPadding(tokenizer),
        "seq2seq": DataCollatorForSeq2Seq(tokenizer),
        "plain": plain_collator,
        "no labels": lambda rows: {k: v for k, v in own(rows).items() if k != "labels"},
        "shuffled": lambda rows: {k: v.flip(0) for k, v in own(rows).items()},
        "nothing": lambda rows: None,
    }


@pytest.mark.parametrize("name", collators(make_tokenizer()))
def test_a_foreign_collator_is_refused_before_the_model_is_loaded(build, model_path, monkeypatch, name):
    monkeypatch.setattr("hf_unlearn.modeling.load_model", lambda *args: pytest.fail("a model was loaded"))
    collator = collators(make_tokenizer())[name]
    with pytest.raises(ValueError, match=r"^data_collator=.* Leave `data_collator` out") as told:
        build(given={"model": model_path, "data_collator": collator}, retain_loss="nll")
    assert "\n" not in str(told.value)


def test_a_collator_around_the_trainers_own_works(build, tokenizer):
    own = RoleCollator(tokenizer.pad_token_id)
    seen = []

    def collate(rows):
        seen.append(len(rows))
        return own(rows)

    trainer = build(given={"data_collator": collate}, retain_loss="nll")
    trainer.train()
    assert trainer.state.global_step == 4
    assert seen.count(2) >= 4


# Rows to evaluate


def test_raw_rows_are_evaluated_as_the_constructor_encodes_them(build, forget_rows, retain_rows):
    sets = {"forget": forget_rows, "retain": retain_rows}
    trainer = build(given={"eval_dataset": sets})
    expected = trainer.evaluate()
    for rows in (
        sets,
        {name: trainer.family.encode(one, trainer.processing_class, None, "x") for name, one in sets.items()},
    ):
        found = trainer.evaluate(rows)
        assert {name: found[f"eval_{name}_loss"] for name in sets} == {
            name: expected[f"eval_{name}_loss"] for name in sets
        }
    assert trainer.evaluate(forget_rows)["eval_loss"] == pytest.approx(expected["eval_forget_loss"], abs=1e-6)
    assert trainer.evaluate(trainer.eval_dataset["forget"])["eval_loss"] == expected["eval_forget_loss"]
    assert trainer.evaluate("forget")["eval_loss"] == expected["eval_forget_loss"]


def test_raw_rows_are_predicted(build, forget_rows):
    trainer = build(given={"eval_dataset": forget_rows})
    predicted = trainer.predict(forget_rows)
    assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
    assert len(predicted.predictions) == len(forget_rows)
    row = trainer.eval_dataset[0]["input_ids"]
    with torch.no_grad():
        logits = trainer.model(torch.tensor([row])).logits[0]
    torch.testing.assert_close(torch.tensor(predicted.predictions[0][: len(row)]), logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_evaluated_is_told(build):
    trainer = build()
    with pytest.raises(ValueError, match="No usable column among"):
        trainer.evaluate([{"words": "x"}])
    with pytest.raises(ValueError, match="No usable column among"):
        trainer.predict([{"words": "x"}])


def test_a_learning_rate_of_nothing_is_told(build, caplog):
    build(learning_rate=0.0)
    assert caplog.text.count("learning_rate=0: no weight moves") == 1
    caplog.clear()
    build(FisherTrainer, learning_rate=0.0, retain_loss="nll", max_steps=-1)
    assert "no weight moves" not in caplog.text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"peft_config": {"r": 4}}, "`peft_config` is a dict. Pass one config of PEFT's"),
        ({"peft_config": [1]}, "`peft_config` is a list"),
        ({"ref_model": "a/path"}, "`ref_model` is a str. Pass a loaded model"),
    ],
)
def test_arguments_of_another_type_are_refused(build, given, told):
    with pytest.raises(ValueError, match=told):
        build(given=given)


def test_an_order_of_rows_that_pairs_do_not_follow_is_told(build, caplog):
    build(train_sampling_strategy="group_by_length")
    assert "without effect in this run: train_sampling_strategy='group_by_length'" in caplog.text
