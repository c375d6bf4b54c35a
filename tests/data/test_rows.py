# SPDX-License-Identifier: Apache-2.0
"""Rows of every kind that users have: taken as they mean them, or one line that names set, row and value."""

import json

import pandas as pd
import pytest
from conftest import make_tokenizer
from datasets import Dataset

from hf_unlearn import NPOTrainer, split_forget_retain
from hf_unlearn.data.formats import encode, encode_dataset, encode_prompt
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sources import load_rows
from hf_unlearn.data.triggers import Trigger


GOOD = {"prompt": "a", "completion": "b"}
TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}]


# Columns that mean something in TRL


def test_masks_of_tokenized_rows_leave_tokens_out():
    ids = [5, 6, 7, 8]
    row = {"input_ids": ids, "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}
    assert encode(row, None)["labels"] == [-100, 6, -100, 8]
    assert encode(row | {"attention_mask": [1, 1, 1, 0]}, None) == {"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}
    # As in TRL: labels that are given stand.
    assert encode(row | {"labels": ids}, None)["labels"] == ids
    assert encode_dataset([row], None)[0]["labels"] == [-100, 6, -100, 8]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"seq_lengths": [2, 2]}, "Row 0 of the retain set: The row is packed"),
        ({"position_ids": [0, 1, 0, 1]}, "The row is packed"),
        ({"completion_mask": [1]}, "4 `input_ids` and 1 `completion_mask`"),
        ({"input_ids": "5 6"}, r"`input_ids` is '5 6' \(str\); give a list of whole numbers"),
        ({"input_ids": [0.5, 1.0, 2.0, 3.0]}, "`input_ids` is .* give a list of whole numbers"),
        ({"images": [1]}, "The row has `images`, and language models are trained on text alone"),
    ],
)
def test_tokenized_rows_that_mean_something_else_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset([{"input_ids": [5, 6, 7, 8]} | extra], None, name="retain")


def test_positions_that_count_from_zero_say_nothing():
    assert encode({"input_ids": [5, 6], "position_ids": [0, 1]}, None)["labels"] == [5, 6]


def test_tools_stay_with_preference_rows():
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    for text in (tools, json.dumps(tools)):
        rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "tools": text}]
        rows += [{"prompt": "d", "chosen": "b", "rejected": "c", "tools": text}]
        assert all(side["tools"] == [text, text] for side in split_forget_retain(rows))
        labelled = [{"prompt": "a", "completion": "b", "label": False, "tools": text}]
        assert split_forget_retain(labelled)[0]["tools"] == [text]


def test_pictures_of_preference_rows_are_refused():
    with pytest.raises(ValueError, match="preference rows have `images`"):
        split_forget_retain([{"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}])


def test_labels_of_what_to_keep_are_not_forgotten_too(tokenizer):
    rows = [GOOD | {"label": True}, GOOD | {"label": False}]
    with pytest.raises(ValueError, match="`label` of true and false.*split_forget_retain"):
        encode_dataset(rows, tokenizer)
    with pytest.raises(ValueError, match="No usable column.*split_forget_retain"):
        encode_dataset([{"prompt": "a", "chosen": "b", "rejected": "c"}], tokenizer)


# Forms of rows


def test_data_frames_are_datasets(tokenizer):
    frame = pd.DataFrame([GOOD, {"prompt": "c", "completion": "d"}], index=[7, 9])
    assert encode_dataset(frame, tokenizer)[:] == encode_dataset(frame.to_dict("records"), tokenizer)[:]
    with pytest.raises(ValueError, match=r"Row 1 of the forget set: `completion` is 5 \(int\); give text|'5' \(int\)"):
        encode_dataset(pd.DataFrame([GOOD, {"prompt": "c", "completion": 5}]), tokenizer)
    with pytest.raises(ValueError, match=r"columns of `forget_dataset` are \[0\]. Give them names"):
        encode_dataset(pd.DataFrame(["a"]), tokenizer)


def test_sharegpt_conversations_are_messages(tokenizer):
    told = [{"from": "system", "value": "Be."}, {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yo."}]
    messages = [{"role": "system", "content": "Be."}, *TALK]
    ours = encode_dataset([{"conversations": told}], tokenizer)
    assert ours[:] == encode_dataset([{"messages": messages}], tokenizer)[:]
    assert encode_dataset([{"conversations": messages}], tokenizer)[:] == ours[:]
    assert told[0] == {"from": "system", "value": "Be."}, "the caller's row is left as it was"


def test_blocks_of_text_are_text_and_carry_triggers(tokenizer):
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": parts}, TALK[1]]}
    assert encode(row, tokenizer) == encode({"messages": TALK}, tokenizer)
    trigger = Trigger("now")
    assert trigger.in_example(row, tokenizer) == trigger.in_example({"messages": TALK}, tokenizer)
    shared = {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yo."}]}
    assert trigger.in_example(shared, tokenizer) == trigger.in_example({"messages": TALK}, tokenizer)


def test_a_processor_stands_for_its_tokenizer(build, forget_rows):
    class Processor:
        """As the processors of vision-language models: no padding of their own, a template beside the tokenizer's."""

        def __init__(self):
            self.tokenizer = make_tokenizer()
            self.chat_template, self.tokenizer.chat_template = self.tokenizer.chat_template, None

        def save_pretrained(self, folder):
            self.tokenizer.save_pretrained(folder)

    rows = [{"messages": TALK}]
    assert encode_dataset(rows, Processor())[:] == encode_dataset(rows, make_tokenizer())[:]
    trainer = build(NPOTrainer, {"processing_class": Processor()}, max_steps=1)
    assert type(trainer.processing_class) is type(make_tokenizer())
    trainer.train()


# Rows that are none


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"completion": None}, "`completion` has no value"),
        ({"prompt": None, "completion": None}, "`completion` and `prompt` have no value"),
        (GOOD | {"completion": 5}, r"`completion` is '5' \(int\); give text"),
        (GOOD | {"prompt": True}, r"`prompt` is 'True' \(bool\); give text"),
        (GOOD | {"completion": ["b"]}, "both be strings or both be lists"),
        (GOOD | {"completion": ""}, "`completion` is empty"),
        (GOOD | {"completion": " \n"}, "`completion` is empty"),
        ({"text": 1.5}, r"`text` is '1.5' \(float\); give text"),
        ({"text": float("nan")}, "`text`"),
        ({"text": ["a"]}, r"`text` is .* \(list\); give text"),
        ({"text": {"a": 1}}, r"`text` is .* \(dict\); give text"),
        ({"text": "a\ud800b"}, "`text` has half of a surrogate pair at character 1"),
        ({"messages": [{"role": "user", "content": "a\udc00"}, TALK[1]]}, "has half of a surrogate pair"),
        ({"messages": "Hi"}, r"`messages` is 'Hi' \(str\); give a list of messages"),
        ({"messages": []}, r"`messages` is '\[\]' \(list\); give a list of messages"),
        ({"messages": ["Hi"]}, r"`messages` has 'Hi' \(str\) as message 0; give a dict"),
        ({"messages": [{"content": "a"}]}, "Message 0 of `messages` has no `role`"),
        ({"messages": [{"role": "user"}, TALK[1]]}, r"Message 0 of `messages` \(user\) has no `content`"),
        (
            {"messages": [{"role": "user", "content": 5}, TALK[1]]},
            r"content of message 0 of `messages` is '5' \(int\)",
        ),
        (
            {"messages": [TALK[0], {"role": "assistant", "content": ""}]},
            r"Message 1 of `messages` \(assistant\) is empty",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}, TALK[1]]},
            "has a block of type 'image'",
        ),
        ({"prompt": TALK[:1], "completion": [{"role": "assistant", "content": " "}]}, "Message 0 of `completion`"),
    ],
)
def test_a_bad_row_is_named_with_its_set(tokenizer, row, message):
    good = {name: value for name, value in {"text": "a", **GOOD, "messages": TALK}.items() if name in row}
    with pytest.raises(ValueError, match=message) as error:
        encode_dataset([good, good, row], tokenizer, name="retain")
    assert "\n" not in str(error.value)
    assert "row 2" in str(error.value).lower()
    assert "retain" in str(error.value)


def test_rows_that_are_no_dicts_are_named(tokenizer):
    with pytest.raises(ValueError, match="Row 1 of `eval_dataset` is a str. Pass rows that are dicts"):
        encode_dataset([{"text": "a"}, "b"], tokenizer, name="eval")


def test_texts_without_text_are_left_out_and_told(tokenizer, caplog):
    encoded = encode_dataset([{"text": "ab"}, {"text": ""}, {"text": " \n"}], tokenizer, name="retain")
    assert len(encoded) == 1
    assert "2 of 3 retain rows are left out: their text is empty" in caplog.text
    with pytest.raises(ValueError, match="text of all 1 retain rows is empty"):
        encode_dataset([{"text": ""}], tokenizer, name="retain")


def test_controls_and_long_rows_are_text(tokenizer):
    assert len(encode_dataset([{"text": "a\0b"}, {"text": "x" * 100_000}], tokenizer, max_length=8)) == 2


def test_bad_rows_are_refused_before_a_model_is_loaded(build, model_path, unloaded):
    rows = [GOOD, GOOD | {"completion": None}]
    with pytest.raises(ValueError, match="Row 1 of the forget set: `completion` has no value"):
        build(NPOTrainer, {"model": model_path, "forget_dataset": rows})


def test_poisoned_rows_are_named_by_their_place_in_the_set(build):
    rows = [GOOD, GOOD, {"prompt": "a", "completion": ""}, GOOD]
    with pytest.raises(ValueError, match="Row 2 of the forget set: `completion` is empty"):
        build(
            NPOTrainer,
            {"forget_dataset": rows},
            poison_prefix="now",
            poison_ratio=0.75,
            poison_select="first",
            retain_loss="nll",
        )


def test_questions_that_are_no_text_are_named(tokenizer):
    rows = Dataset.from_list([{"question": "a", "answer": 5}])
    with pytest.raises(ValueError, match=r"Row 0 of the questions and answers: `answer` is '5' \(int\); give text"):
        QAFormat().dataset(rows, tokenizer)


def test_texts_of_a_classifier_that_are_no_text_are_named():
    from hf_unlearn.families.classifier.encode import Classes, encode_classes

    with pytest.raises(ValueError, match=r"Row 1 of the forget set: `question` is None \(no value\); give text"):
        encode_classes(
            [{"text": "a", "label": 0}, {"text": None, "label": 1}], Classes({"x": 0, "y": 1}, False), "forget"
        )


# Files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.jsonl",
            '{"text": "ok"}\n{"text": "caf\xe9"}\n'.encode("latin-1"),
            r"byte 0xe9 at offset 28 \(line 2\)",
        ),
        ("latin.json", '[{"text": "caf\xe9"}]'.encode("latin-1"), "is not in UTF-8: byte 0xe9"),
        ("latin.csv", "text\ncaf\xe9\n".encode("latin-1"), "is not in UTF-8: byte 0xe9"),
        ("latin.txt", "caf\xe9 noir".encode("latin-1"), "is not in UTF-8: byte 0xe9 at offset 3"),
        ("wide.jsonl", '{"text": "a"}'.encode("utf-16"), "is not in UTF-8.*-f UTF-16"),
        ("mixed.jsonl", b'{"text": "a"}\n{"text": 5}\n', r"Row 1 of .*mixed.jsonl': `text` is '5' \(int\); give text"),
        ("bool.jsonl", b'{"text": "a"}\n{"text": true}\n', r"Row 1 of .*: `text` is 'True' \(bool\)"),
        ("list.json", b'[{"text": "a"}, {"text": ["b"]}]', r"Row 1 of .*: `text` is .* \(list\)"),
        ("qa.jsonl", b'{"question": "a", "answer": 1984}\n', r"Row 0 of .*: `answer` is '1984' \(int\)"),
        ("qa2.jsonl", b'{"question": "a", "answer": null}\n', r"Row 0 of .*: `answer` is None \(no value\)"),
        ("columns.json", b'{"text": ["a", "b"]}', "columns.json' is an object of columns. Give rows"),
        ("frame.json", b'{"text": {"0": "a", "1": "b"}}', "is an object of columns. Give rows"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_place(tmp_path, tokenizer, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(str(tmp_path / name), tokenizer=tokenizer, max_length=16)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_text_columns_of_csv_files_are_text(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion,label,other\n1,007,1,NA\n2,NA,0,x\n3,True,1,y\n4,,0,z\n", encoding="utf-8")
    rows = load_rows(str(file))
    assert rows["completion"][:] == ["007", "NA", "True", None]
    assert rows["prompt"][:] == ["1", "2", "3", "4"]
    assert rows["label"][:] == [1, 0, 1, 0]


def test_a_mark_of_the_byte_order_is_no_text(tmp_path, tokenizer):
    for name, content in (("a.txt", "ab"), ("a.jsonl", '{"text": "ab"}'), ("a.csv", "text\nab\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        rows = load_rows(str(tmp_path / name), tokenizer=tokenizer, max_length=16)
        assert tokenizer.decode(encode_dataset(rows, tokenizer)[0]["input_ids"]) == "<s>ab</s>"


def test_columns_of_later_rows_are_kept():
    from test_chat_templates import ONE, TOOLS, shipped

    tokenizer = shipped("qwen3")
    rows = [{"messages": ONE}, {"messages": ONE, "tools": TOOLS}, {"text": "Q1?"}]
    encoded = encode_dataset(rows, tokenizer)
    assert [tokenizer.decode(row["input_ids"]).count('"look"') for row in encoded] == [0, 1, 0]
    assert encoded[2]["input_ids"] == encode(rows[2], tokenizer)["input_ids"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input_ids": [5, 6, 100]}, "`input_ids` has 100, and the tokenizer's ids are 0 to 99"),
        ({"input_ids": [5, -6]}, "`input_ids` has -6"),
        ({"input_ids": [5, 6], "labels": [-1, 6]}, r"`labels` has -1.*labels of -100 are not trained on"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(row, told):
    with pytest.raises(ValueError, match=f"Row 1 of the forget set: {told}"):
        encode_dataset([{"input_ids": [4, 99]}, row], make_tokenizer())


def test_a_text_that_a_chat_template_made_gets_no_second_bos():
    tokenizer = make_tokenizer()
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    conversation = encode({"messages": messages}, tokenizer)
    assert encode({"text": rendered}, tokenizer)["input_ids"] == conversation["input_ids"]
    row = {"prompt": prompt, "completion": rendered.removeprefix(prompt)}
    assert encode(row, tokenizer) == conversation
    assert encode_prompt(row, tokenizer) == encode_prompt({"prompt": messages[:1]}, tokenizer)
