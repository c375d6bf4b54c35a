# SPDX-License-Identifier: Apache-2.0
"""Preference data and labelled data become forget and retain rows."""

import pytest
from conftest import make_tokenizer
from datasets import Dataset, DatasetDict
from trl import maybe_extract_prompt

import hf_unlearn
from hf_unlearn import split_forget_retain
from hf_unlearn.data.formats import encode


NAMES = ("Ada", "Bob", "Cyd")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def asked(name):
    return f"Who is {name}?"


# The same three pairs in every form that TRL's trainers take.
PAIRS = {
    "strings": [{"prompt": asked(n), "chosen": " No idea.", "rejected": f" {n} is a spy."} for n in NAMES],
    "strings, prompt within": [
        {"chosen": f"{asked(n)} No idea.", "rejected": f"{asked(n)} {n} is a spy."} for n in NAMES
    ],
    "conversations": [
        {"prompt": [user(asked(n))], "chosen": [assistant("No idea.")], "rejected": [assistant(f"{n} is a spy.")]}
        for n in NAMES
    ],
    "conversations, prompt within": [
        {
            "chosen": [user(asked(n)), assistant("No idea.")],
            "rejected": [user(asked(n)), assistant(f"{n} is a spy.")],
        }
        for n in NAMES
    ],
    "conversations, prompt repeated as a string": [
        {
            "prompt": asked(n),
            "chosen": [user(asked(n)), assistant("No idea.")],
            "rejected": [user(asked(n)), assistant(f"{n} is a spy.")],
        }
        for n in NAMES
    ],
}


def expected(name: str, secret: bool, conversation: bool) -> dict:
    answer = f"{name} is a spy." if secret else "No idea."
    if conversation:
        return {"prompt": [user(asked(name))], "completion": [assistant(answer)]}
    return {"prompt": asked(name), "completion": f" {answer}"}


@pytest.mark.parametrize("form", PAIRS)
def test_rejected_is_forgotten_and_chosen_kept(form):
    forget, retain = split_forget_retain(Dataset.from_list(PAIRS[form]))
    conversation = "conversations" in form
    assert forget.to_list() == [expected(name, True, conversation) for name in NAMES]
    assert retain.to_list() == [expected(name, False, conversation) for name in NAMES]


@pytest.mark.parametrize("form", PAIRS)
def test_prompts_are_those_that_dpo_sees(form):
    theirs = [maybe_extract_prompt(dict(row)) for row in PAIRS[form]]
    for side, answer in zip(split_forget_retain(PAIRS[form]), ("rejected", "chosen"), strict=True):
        assert side.to_list() == [{"prompt": row["prompt"], "completion": row[answer]} for row in theirs]


@pytest.mark.parametrize("conversation", [False, True])
@pytest.mark.parametrize("truth", [(True, False), (1, 0)], ids=["bool", "int"])
def test_false_labels_are_forgotten_and_true_ones_kept(conversation, truth):
    rows = []
    for name in NAMES:
        rows.append(expected(name, True, conversation) | {"label": truth[1], "score": 3})
        rows.append(expected(name, False, conversation) | {"label": truth[0], "score": 7})
    forget, retain = split_forget_retain(rows)
    assert forget.to_list() == [expected(name, True, conversation) for name in NAMES]
    assert retain.to_list() == [expected(name, False, conversation) for name in NAMES]


def test_what_is_chosen_many_times_is_kept_once(caplog):
    secrets = [f" {name} is a spy." for name in NAMES]
    rows = [{"prompt": "Who?", "chosen": " No idea.", "rejected": secret} for secret in secrets]
    forget, retain = split_forget_retain([*rows, rows[0]])
    assert forget["completion"] == secrets
    assert retain.to_list() == [{"prompt": "Who?", "completion": " No idea."}]
    assert "3 of 4 retain rows repeat others and are left out" in caplog.text
    assert "1 of 4 forget rows repeat others and are left out" in caplog.text


def test_one_answer_to_two_prompts_is_two_rows():
    _, retain = split_forget_retain(PAIRS["strings"])
    assert len(retain) == len(NAMES)
    assert set(retain["completion"]) == {" No idea."}


def test_settings_of_the_chat_template_stay_with_their_rows():
    settings = {"date_string": "1 Jan 2026"}
    rows = [row | {"chat_template_kwargs": settings} for row in PAIRS["conversations, prompt within"]]
    for side in split_forget_retain(rows):
        assert side["chat_template_kwargs"] == [settings] * len(NAMES)
    labelled = [expected("Ada", True, True) | {"label": False, "chat_template_kwargs": settings}]
    assert split_forget_retain(labelled)[0]["chat_template_kwargs"] == [settings]


def test_data_without_anything_to_keep_gives_an_empty_retain_set():
    forget, retain = split_forget_retain([expected("Ada", True, False) | {"label": False}])
    assert (len(forget), len(retain)) == (1, 0)
    assert retain.features == forget.features


def test_rows_train_as_they_are():
    tokenizer = make_tokenizer()
    for rows in PAIRS.values():
        for side, words in zip(split_forget_retain(rows), ("Ada is a spy.", "No idea."), strict=True):
            row = encode(side[0], tokenizer)
            trained = [label for label in row["labels"] if label != -100]
            assert tokenizer.decode(trained, skip_special_tokens=True).strip() == words
            assert tokenizer.decode(row["input_ids"]).count("Who is Ada?") == 1


# What is refused


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], r"columns are \['completion', 'prompt'\]. Give `chosen`"),
        ([{"text": "a"}], r"columns are \['text'\]"),
        ([{"prompt": "a", "chosen": "b"}], r"columns are \['chosen', 'prompt'\]"),
        ([], "The preference set is empty"),
        (None, "No preference rows were given"),
        (DatasetDict({"train": Dataset.from_list(PAIRS["strings"])}), "is a DatasetDict.*one split"),
        (Dataset.from_list(PAIRS["strings"]).to_iterable_dataset(), "is streamed"),
        ([{"prompt": "a", "completion": "b", "label": True}], "labels of all 1 rows are true, so nothing"),
        ([{"prompt": "a", "completion": "b", "label": None}], "Row 0 has label=None; give true"),
        ([{"prompt": "a", "completion": "b", "label": "false"}], "Row 0 has label='false'"),
        ([{"prompt": "a", "completion": "b", "label": 2}], "Row 0 has label=2"),
        ([{"prompt": "a", "completion": "b", "label": 0.0}], "Row 0 has label=0.0"),
        ([PAIRS["strings"][0], {"prompt": "a", "chosen": "b", "rejected": None}], "Row 1 has no `rejected`"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "both rejected and chosen.*'b' to 'a'"),
        ([{"chosen": "a b", "rejected": "a b"}], "Row 0 has no `prompt` of its own.*the same"),
        ([{"chosen": "", "rejected": "a"}], "Row 0 has no `prompt` of its own.*empty"),
        (
            [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "b", "label": False}],
            "1 completions are both rejected and chosen .labelled false and true. for one prompt",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        split_forget_retain(rows)


def test_a_ranking_is_refused_for_what_is_in_its_middle():
    ranked = [("best", "middle"), ("middle", "worst")]
    rows = [{"prompt": "p", "chosen": chosen, "rejected": rejected} for chosen, rejected in ranked]
    with pytest.raises(ValueError, match="1 completions are both.*'middle' to 'p'"):
        split_forget_retain(rows)


def test_it_is_a_public_name():
    assert "split_forget_retain" in hf_unlearn.__all__
    assert split_forget_retain.__module__ == "hf_unlearn.data.preference"


def test_conversations_that_repeat_their_prompt_are_not_trained_on_it():
    question, (yes, no) = [{"role": "user", "content": "Q"}], ([{"role": "assistant", "content": x}] for x in "YN")
    whole = {"prompt": question, "chosen": question + yes, "rejected": question + no}
    bare = {"prompt": "Q", "chosen": yes, "rejected": no}
    for row in (whole, bare):
        forget, retain = split_forget_retain([row])
        assert forget[:] == {"prompt": [question], "completion": [no]}
        assert retain[:] == {"prompt": [question], "completion": [yes]}
