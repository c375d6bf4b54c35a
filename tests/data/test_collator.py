# SPDX-License-Identifier: Apache-2.0
"""One padded batch: widths, masks and roles."""

import pytest
import torch
from conftest import make_tokenizer

from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import encode


def row(*ids, labels=None):
    return {"input_ids": list(ids), "labels": list(ids if labels is None else labels)}


def pair(forget, retain, numbers=(0, 0)):
    return {"forget": {**forget, "index": numbers[0]}, "retain": {**retain, "index": numbers[1]}}


def test_flat_rows_are_padded_to_the_longest():
    batch = RoleCollator(pad_token_id=9)([row(1, 2, 3), row(4, labels=[-100])])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [-100, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_left_padding_moves_the_rows_to_the_right():
    batch = RoleCollator(pad_token_id=9, padding_side="left")([row(1, 2, 3), row(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[1, 2, 3], [-100, -100, 4]]


def test_rows_without_labels_train_nothing():
    batch = RoleCollator(pad_token_id=0)([{"input_ids": [1, 2]}])
    assert batch["labels"].tolist() == [[-100, -100]]


@pytest.mark.parametrize(("multiple", "width"), [(None, 3), (1, 3), (2, 4), (3, 3), (8, 8)])
def test_width_is_rounded_up(multiple, width):
    batch = RoleCollator(pad_token_id=0, pad_to_multiple_of=multiple)([row(1, 2, 3), row(4)])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, width)
    assert batch["attention_mask"].sum(-1).tolist() == [3, 1]


def test_roles_share_one_batch_and_each_keeps_its_rows_together():
    pairs = [pair(row(1, 2, 3), row(4), (7, 11)), pair(row(5), row(6, 7), (8, 12))]
    batch = RoleCollator(pad_token_id=0)(pairs)
    assert batch["role"].tolist() == [0, 0, 1, 1]
    assert batch["index"].tolist() == [7, 8, 11, 12]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 0, 0], [4, 0, 0], [6, 7, 0]]
    assert batch["attention_mask"].sum(-1).tolist() == [3, 1, 1, 2]


def test_one_role_alone_and_a_third_role():
    batch = RoleCollator(pad_token_id=0)([{"forget": {**row(1), "index": 3}}])
    assert (batch["role"].tolist(), batch["index"].tolist()) == ([0], [3])
    three = {role: {**row(number), "index": number} for number, role in enumerate(("retain", "poisoned", "forget"))}
    batch = RoleCollator(pad_token_id=9, roles=("forget", "poisoned", "retain"))([three, three])
    assert batch["role"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["index"].tolist() == [2, 2, 1, 1, 0, 0]


def test_a_real_eos_stays_visible_where_eos_is_the_pad_token():
    tokenizer = make_tokenizer(pad_is_eos=True)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    rows = [
        encode({"messages": turns}, tokenizer),
        encode({"text": "a long text to pad the other to, yes"}, tokenizer),
    ]
    batch = RoleCollator(tokenizer.pad_token_id)(rows)
    real = len(rows[0]["input_ids"])
    eos = (batch["input_ids"][0, :real] == tokenizer.eos_token_id).nonzero().flatten()
    assert len(eos) == 2
    assert batch["attention_mask"][0, eos].tolist() == [1, 1]
    assert batch["labels"][0, eos].tolist() == [tokenizer.eos_token_id] * 2
    assert batch["attention_mask"][0].sum() == real
    assert (batch["labels"][0, real:] == -100).all()


def test_the_pad_token_and_the_width_change_no_prediction(model):
    ids = [5, 9, 33, 2, 40]
    alone = model(**{k: v for k, v in RoleCollator(0)([row(*ids)]).items() if k != "labels"}).logits
    for pad in (0, 2, 77):
        batch = RoleCollator(pad, pad_to_multiple_of=16)([row(*ids), row(3)])
        padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(padded[:1, : len(ids)], alone)
