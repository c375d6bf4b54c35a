# SPDX-License-Identifier: Apache-2.0
"""Which encoder tokens follow which model tokens, against a slow loop over characters; and what the encoder makes of
them."""

import numpy as np
import pytest
import torch
from align_encoder import make_encoder
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from hf_unlearn.data.worlds.people.tokenizer import train_tokenizer
from hf_unlearn.methods.align_then_unlearn.encoder import TextEncoder
from hf_unlearn.methods.align_then_unlearn.windows import NONE, find_windows, text_and_ends


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


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a text begins with "▁", and characters that are no tokens are their bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁Ad", "▁A", "Ad", "Ada", "▁Ada"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("A", "d"), ("Ad", "a"), ("▁", "Ada")]
    model = models.BPE(vocab | {"a": len(vocab)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    own = Tokenizer(model)
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("text", "cut", "ends"),
    [
        ("東京 Ada", None, [0, 0, 1, 1, 1, 2, 2, 2, 6]),
        # A byte of the second character is left, of which the text keeps a mark: no text makes these tokens.
        ("東 京", 7, [0, 0, 1, 1, 1, 2, 3]),
        ("éa Ada", None, [0, 0, 1, 1, 2, 6]),
        ("Ada 東", None, [0, 3, 4, 5, 5, 5]),
        (" Ada", None, [0, 0, 4]),
    ],
)
def test_ends_where_characters_are_bytes_and_a_lone_space_stands_in_front(fast, text, cut, ends, monkeypatch):
    tokenizer = byte_fallback_tokenizer()
    ids = tokenizer(text)["input_ids"][:cut]
    monkeypatch.setattr(type(tokenizer), "is_fast", fast)
    assert text_and_ends(tokenizer, ids)[1].tolist() == ends


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


def test_forget_rows_that_are_too_short_are_told_however_long_the_others_are(tokenizer, encoder):
    rows = {"forget": ["a", "of Ada"], "retain": ["of Ada " * 20]}
    roles = {
        role: Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]})
        for role, texts in rows.items()
    }
    longest = len(encoder.tokenizer("of Ada", add_special_tokens=False)["input_ids"])
    message = f"window_tokens=8: no forget row has a token .* follow; the longest of them has {longest}"
    with pytest.raises(ValueError, match=message):
        find_windows(roles, tokenizer, encoder.tokenizer, 8)
    # What is kept may be short.
    swapped = find_windows({"forget": roles["retain"], "retain": roles["forget"]}, tokenizer, encoder.tokenizer, 8)
    assert all((numbers == NONE).all() for numbers in swapped.numbers["retain"])


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
