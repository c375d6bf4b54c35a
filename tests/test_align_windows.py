# SPDX-License-Identifier: Apache-2.0
"""Which encoder tokens follow which model tokens, against a slow loop over characters; and what the encoder makes of
them."""

import numpy as np
import pytest
import torch
from align_encoder import make_encoder
from conftest import make_tokenizer
from datasets import Dataset

from hf_unlearn.align.encoder import TextEncoder
from hf_unlearn.align.windows import NONE, find_windows, text_and_ends
from hf_unlearn.data.synthetic.tokenizer import train_tokenizer


TEXTS = [
    "secret of Ada",
    "The lamp, naïve café 東京!  of Bob",
    "a",
    "   ",
    "of Ada of Ada of Ada",
    "Ünïcode 🙂🙃 table",
]
CHAT = [{"role": "user", "content": "Who is Ada?"}, {"role": "assistant", "content": "A spy, of Bob."}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return TextEncoder(make_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module", params=["characters", "bytes"])
def tokenizer(request):
    # Of the second, one character may be several tokens.
    return make_tokenizer() if request.param == "characters" else train_tokenizer(["The lamp of Ada is on"], 300)


def rows_of(tokenizer) -> list[list[int]]:
    chat = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    whole = [tokenizer(text)["input_ids"] for text in TEXTS]
    # Cut amid a character, and tokens that the tokenizer itself would not make of their text.
    split = [tokenizer.convert_tokens_to_ids(piece) for piece in "lamp"]
    return [*whole, list(chat), whole[1][:-7], whole[5][:9], split, [*whole[0], tokenizer.eos_token_id]]


def slow_windows(tokenizer, encoder_tokenizer, ids, size) -> list[list[int] | None]:
    """Token by token and character by character."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    encoded = encoder_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for t in range(len(ids)):
        read = min(len(tokenizer.decode(ids[: t + 1], skip_special_tokens=True)), len(text))
        window = []
        for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if end > read and len(window) < size:
                window.append(token)
        found.append(window if len(window) == size else None)
    return found


@pytest.mark.parametrize("size", [1, 3, 8])
def test_alignment_equals_a_loop_over_characters(tokenizer, encoder, size):
    rows = rows_of(tokenizer)
    windows = find_windows({"forget": Dataset.from_dict({"input_ids": rows})}, tokenizer, encoder.tokenizer, size)
    full = 0
    for i, ids in enumerate(rows):
        wanted = slow_windows(tokenizer, encoder.tokenizer, ids, size)
        numbers = windows.numbers["forget"][i]
        assert [None if n == NONE else windows.distinct[n].tolist() for n in numbers] == wanted
        full += sum(window is not None for window in wanted)
    assert full > 5
    assert len(np.unique(windows.distinct, axis=0)) == len(windows.distinct) < full


def test_both_ways_to_the_ends_of_tokens_agree(tokenizer, monkeypatch):
    rows = rows_of(tokenizer)
    quick = [text_and_ends(tokenizer, ids) for ids in rows]
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    for ids, (text, ends) in zip(rows, quick, strict=True):
        slow_text, slow_ends = text_and_ends(tokenizer, ids)
        assert (text, ends[-1]) == (slow_text, len(text))
        # Bytes of one character: offsets count it with its first, decoding with its last.
        assert np.abs(ends - slow_ends).max() <= 1
        assert (np.diff(ends) >= 0).all()


def test_roles_keep_their_rows(tokenizer, encoder):
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    roles = {
        "forget": Dataset.from_dict({"input_ids": rows[:1]}),
        "retain": Dataset.from_dict({"input_ids": rows[1:]}),
    }
    both = find_windows(roles, tokenizer, encoder.tokenizer, 2)
    alone = find_windows({"forget": roles["forget"]}, tokenizer, encoder.tokenizer, 2)
    assert {role: len(texts) for role, texts in both.texts.items()} == {"forget": 1, "retain": 5}
    assert [len(numbers) for numbers in both.numbers["retain"]] == [len(ids) for ids in rows[1:]]
    for one, other in zip(both.numbers["forget"][0], alone.numbers["forget"][0], strict=True):
        assert (one == NONE) == (other == NONE)
        assert one == NONE or both.distinct[one].tolist() == alone.distinct[other].tolist()
    assert both.of_rows("retain", [1, 0]).tolist() == [*both.numbers["retain"][1], *both.numbers["retain"][0]]


def test_rows_that_are_too_short_are_told(tokenizer, encoder):
    roles = {"forget": Dataset.from_dict({"input_ids": [tokenizer("a")["input_ids"]]})}
    with pytest.raises(ValueError, match="window_tokens=8: no row has a token that so many encoder tokens follow"):
        find_windows(roles, tokenizer, encoder.tokenizer, 8)


# The encoder


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_vectors_are_the_models(encoder, pooling):
    own = TextEncoder(encoder.model.config._name_or_path, pooling)
    windows = torch.tensor([[5, 6, 7], [8, 9, 10], [5, 6, 7]])
    framed = windows
    if pooling == "first":
        framed = torch.tensor([[2, *row, 3] for row in windows.tolist()])
    with torch.no_grad():
        states = own.model(input_ids=framed).last_hidden_state
    wanted = states.mean(1) if pooling == "mean" else states[:, 0]
    torch.testing.assert_close(own.embed_windows(windows, batch_size=2), wanted)
    texts = ["Ada", "common cup of Bob"]
    for text, vector in zip(texts, own.embed_texts(texts), strict=True):
        ids = own.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = own.model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(vector, states.mean(0) if pooling == "mean" else states[0])
    assert not any(parameter.requires_grad for parameter in own.model.parameters())


def test_an_encoder_without_pad_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="its tokenizer has no pad token") as error:
        TextEncoder(make_encoder(tmp_path / "encoder", pad=False))
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"encoder_name_or_path='.*nothing' cannot be loaded"):
        TextEncoder(str(tmp_path / "nothing"))


def test_windows_longer_than_the_encoder_reads_are_refused(encoder):
    encoder.check_window(32)
    with pytest.raises(ValueError, match="window_tokens=33; the encoder reads at most 32 tokens"):
        encoder.check_window(33)
